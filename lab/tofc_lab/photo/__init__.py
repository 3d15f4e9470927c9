"""The model that knows photographs: its pictures, the training of its tower and decoder, and its export."""
