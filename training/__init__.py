"""How ``pie-tiny`` is made: its corpus, its tokenizer, its training, its figures."""
