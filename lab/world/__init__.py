"""nano's world: pictures of objects and signs on photographs, with questions and their answers.

Data flow: ``assets`` (fonts, photographs, splits) → ``scene`` (what is where, drawn) →
``questions`` (what can be asked of it). ``easy_vqa`` brings a second world, made by others.
"""
