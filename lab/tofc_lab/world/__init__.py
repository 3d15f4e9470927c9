"""nano's world: pictures of objects and signs on photographs, with questions and their answers.

Data flow: `assets` (fonts, photographs, splits) → `scene` (what is where, drawn) →
`questions` (what can be asked about it). `easy_vqa` adds a second world, made by others.
"""
