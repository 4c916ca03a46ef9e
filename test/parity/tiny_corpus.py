"""A corpus file of random tokens, without text and tokenizer."""

import h5py
import numpy as np


def write_corpus(path, rng, vocabulary, n_tokens):
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "stablemoe-corpus"
        file.attrs["format_version"] = np.int64(1)
        file.attrs["vocabulary"] = np.int64(vocabulary)
        file.attrs["end_id"] = np.int64(-1)
        file.attrs["fingerprint"] = np.uint64(vocabulary * n_tokens)
        file.attrs["unigram_nats"] = np.log(vocabulary)
        file.attrs["bigram_nats"] = np.log(vocabulary)
        for split in ("train", "valid", "test"):
            # Skewed, as words are: some tokens come often, some never.
            tokens = np.minimum(rng.geometric(0.12, n_tokens) - 1, vocabulary - 1)
            file[f"{split}/tokens"] = tokens.astype("<u2")
            file[f"{split}/document"] = np.array([0, n_tokens], dtype="<i8")
            file[split].attrs["n_bytes"] = np.int64(0)
        file["count"] = np.bincount(file["train/tokens"][()], minlength=vocabulary).astype("<i8")
