import pytest
from tokenizers import Tokenizer

from training.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(seed=1, num_documents=300, vocab_size=600)
