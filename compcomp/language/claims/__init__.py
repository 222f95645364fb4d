"""The kinds of claim, a class each: fields, text, meaning. A new kind is one class here and one rule that proves it."""
