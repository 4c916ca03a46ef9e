// SentencePiece behind the C interface of tokenizer.h. The only C++ of the project.
//
// What is not lossless in SentencePiece, and what is done about it:
// - it rewrites blanks and adds one in front: switched off in the model;
// - it shows a blank as U+2581, so that a real U+2581 would come back as a blank: encode gives
//   that character as its three bytes, which byte fallback has pieces for;
// - characters outside the vocabulary: byte fallback.

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#define _Noreturn [[noreturn]]
extern "C" {
#include "stablemoe/arena.h"
#include "stablemoe/tokenizer.h"
}

namespace sp = sentencepiece;

namespace {

// As SentencePiece writes a blank.
const char kBlank[] = "\xe2\x96\x81";
const size_t kBlankBytes = 3;

// Of characters that get pieces, where nothing else is asked for: the default of SentencePiece.
const double kCoverage = 0.9995;

// Threads are part of the result (sums in float), so their number is fixed and not the machine's.
const char kThreads[] = "2";

class Sentences : public sp::SentenceIterator {
public:
  Sentences(smoe_sentence_source source, void *context) : source_(source), context_(context) {
    Next();
  }
  bool done() const override {
    return done_;
  }
  void Next() override {
    const char *text = nullptr;
    size_t bytes = 0;
    done_ = !source_(context_, &text, &bytes);
    if (!done_) value_.assign(text, bytes);
  }
  const std::string &value() const override {
    return value_;
  }
  sp::util::Status status() const override {
    return sp::util::Status();
  }

private:
  smoe_sentence_source source_;
  void *context_;
  std::string value_;
  bool done_ = false;
};

char *copy_bytes(const std::string &text) {
  char *copy = static_cast<char *>(smoe_alloc(text.size() + 1));
  std::memcpy(copy, text.data(), text.size());
  return copy;
}

// SentencePiece puts the number that would do at the end of its message.
smoe_status train_failed(const std::string &message, int vocabulary) {
  const size_t high = message.find("value <= ");
  if (high != std::string::npos) {
    return SMOE_FAIL(SMOE_ERR_CONFIG,
                     "this text does not allow a vocabulary of %d pieces: the largest it allows is %d",
                     vocabulary, std::atoi(message.c_str() + high + 9));
  }
  const size_t low = message.find(" vs ");
  if (message.find("required_chars") != std::string::npos && low != std::string::npos) {
    return SMOE_FAIL(SMOE_ERR_CONFIG,
                     "a vocabulary of %d pieces is too small for the characters of this text: "
                     "it takes more than %d",
                     vocabulary, std::atoi(message.c_str() + low + 4));
  }
  return SMOE_FAIL(SMOE_ERR_FORMAT, "SentencePiece cannot train on this text: %s", message.c_str());
}

} // namespace

struct smoe_tokenizer {
  sp::SentencePieceProcessor processor;
  std::vector<int> blank; // byte pieces of U+2581; empty where the model has none
};

static smoe_status train(char **model, size_t *bytes, smoe_tokenizer_kind kind, int vocabulary,
                         double coverage, const char *symbols, smoe_sentence_source source, void *context) {
  *model = nullptr;
  *bytes = 0;
  try {
    Sentences sentences(source, context);
    SMOE_CHECK(!sentences.done(), SMOE_ERR_FORMAT, "there is no text to train a tokenizer on");
    const std::unordered_map<std::string, std::string> options = {
        {"model_type", kind == SMOE_BPE ? "bpe" : "unigram"},
        {"vocab_size", std::to_string(vocabulary)},
        {"unk_id", "0"},
        {"eos_id", "1"},
        {"bos_id", "-1"},
        {"pad_id", "-1"},
        {"byte_fallback", "true"},
        {"character_coverage", std::to_string(coverage)},
        {"normalization_rule_name", "identity"},
        {"remove_extra_whitespaces", "false"},
        {"add_dummy_prefix", "false"},
        {"allow_whitespace_only_pieces", "true"},
        {"max_sentence_length", "65536"},
        {"num_threads", kThreads},
        {"minloglevel", "3"},
        {"control_symbols", symbols},
    };
    std::string serialized;
    const sp::util::Status status = sp::SentencePieceTrainer::Train(options, &sentences, &serialized);
    if (!status.ok()) return train_failed(status.ToString(), vocabulary);
    *model = copy_bytes(serialized);
    *bytes = serialized.size();
    return SMOE_OK;
  } catch (const std::bad_alloc &) {
    return SMOE_FAIL(SMOE_ERR_MEMORY, "no memory to train a tokenizer");
  } catch (const std::exception &error) {
    return SMOE_FAIL(SMOE_ERR_FORMAT, "SentencePiece cannot train on this text: %s", error.what());
  }
}

extern "C" smoe_status smoe_tokenizer_train(char **model, size_t *bytes, smoe_tokenizer_kind kind,
                                            int vocabulary, double coverage, smoe_sentence_source source,
                                            void *context) {
  return train(model, bytes, kind, vocabulary, coverage, "", source, context);
}

extern "C" smoe_status smoe_tokenizer_train_with(char **model, size_t *bytes, smoe_tokenizer_kind kind,
                                                 int vocabulary, const char *symbols,
                                                 smoe_sentence_source source, void *context) {
  return train(model, bytes, kind, vocabulary, kCoverage, symbols, source, context);
}

extern "C" smoe_status smoe_tokenizer_open(smoe_tokenizer **tokenizer, const char *model, size_t bytes) {
  *tokenizer = nullptr;
  try {
    std::unique_ptr<smoe_tokenizer> made(new smoe_tokenizer);
    const sp::util::Status status = made->processor.LoadFromSerializedProto(absl::string_view(model, bytes));
    SMOE_CHECK(status.ok() && made->processor.GetPieceSize() > 0, SMOE_ERR_FORMAT,
               "this is no SentencePiece model: %s", status.ok() ? "no pieces" : status.ToString().c_str());
    for (const char *name : {"<0xE2>", "<0x96>", "<0x81>"}) {
      const int id = made->processor.PieceToId(name);
      if (made->processor.IsByte(id)) made->blank.push_back(id);
    }
    if (made->blank.size() != kBlankBytes) made->blank.clear();
    *tokenizer = made.release();
    return SMOE_OK;
  } catch (const std::exception &error) {
    return SMOE_FAIL(SMOE_ERR_FORMAT, "this is no SentencePiece model: %s", error.what());
  }
}

extern "C" void smoe_tokenizer_close(smoe_tokenizer *tokenizer) {
  delete tokenizer;
}

extern "C" int smoe_tokenizer_size(const smoe_tokenizer *tokenizer) {
  return tokenizer->processor.GetPieceSize();
}

extern "C" int32_t smoe_tokenizer_end(const smoe_tokenizer *tokenizer) {
  return tokenizer->processor.eos_id();
}

extern "C" const char *smoe_tokenizer_piece(const smoe_tokenizer *tokenizer, int32_t id) {
  return tokenizer->processor.IdToPiece(id).c_str();
}

extern "C" int32_t smoe_tokenizer_find(const smoe_tokenizer *tokenizer, const char *piece) {
  const int id = tokenizer->processor.PieceToId(piece);
  return tokenizer->processor.IdToPiece(id) == piece ? id : -1;
}

extern "C" smoe_status smoe_tokenizer_encode(const smoe_tokenizer *tokenizer, const char *text, size_t bytes,
                                             int32_t **ids, size_t *n_ids) {
  *ids = nullptr;
  *n_ids = 0;
  try {
    std::vector<int> all, part;
    const absl::string_view view(text, bytes);
    size_t begin = 0;
    while (begin < bytes) {
      size_t end = tokenizer->blank.empty() ? view.npos : view.find(kBlank, begin);
      if (end == view.npos) end = bytes;
      if (end > begin) {
        const sp::util::Status status = tokenizer->processor.Encode(view.substr(begin, end - begin), &part);
        SMOE_CHECK(status.ok(), SMOE_ERR_FORMAT, "SentencePiece cannot encode: %s",
                   status.ToString().c_str());
        all.insert(all.end(), part.begin(), part.end());
      }
      if (end < bytes) all.insert(all.end(), tokenizer->blank.begin(), tokenizer->blank.end());
      begin = end + kBlankBytes;
    }
    *ids = static_cast<int32_t *>(smoe_alloc((all.size() + 1) * sizeof(int32_t)));
    for (size_t i = 0; i < all.size(); i++) (*ids)[i] = all[i];
    *n_ids = all.size();
    return SMOE_OK;
  } catch (const std::exception &error) {
    return SMOE_FAIL(SMOE_ERR_MEMORY, "SentencePiece cannot encode: %s", error.what());
  }
}

static smoe_status decode(const smoe_tokenizer *tokenizer, const std::vector<int> &list, char **text,
                          size_t *bytes) {
  *text = nullptr;
  try {
    for (const int id : list) {
      SMOE_CHECK(id >= 0 && id < tokenizer->processor.GetPieceSize(), SMOE_ERR_FORMAT,
                 "token %d is outside the vocabulary of %d pieces", id, tokenizer->processor.GetPieceSize());
    }
    std::string decoded;
    const sp::util::Status status = tokenizer->processor.Decode(list, &decoded);
    SMOE_CHECK(status.ok(), SMOE_ERR_FORMAT, "SentencePiece cannot decode: %s", status.ToString().c_str());
    *text = copy_bytes(decoded);
    *bytes = decoded.size();
    return SMOE_OK;
  } catch (const std::exception &error) {
    return SMOE_FAIL(SMOE_ERR_MEMORY, "SentencePiece cannot decode: %s", error.what());
  }
}

extern "C" smoe_status smoe_tokenizer_decode(const smoe_tokenizer *tokenizer, const int32_t *ids,
                                             size_t n_ids, char **text) {
  size_t bytes;
  return decode(tokenizer, std::vector<int>(ids, ids + n_ids), text, &bytes);
}

extern "C" smoe_status smoe_tokenizer_decode_known(const smoe_tokenizer *tokenizer, const int32_t *ids,
                                                   size_t n_ids, char **text, size_t *bytes) {
  std::vector<int> known;
  for (size_t i = 0; i < n_ids; i++)
    if (ids[i] != tokenizer->processor.unk_id()) known.push_back(ids[i]);
  return decode(tokenizer, known, text, bytes);
}
