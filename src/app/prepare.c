#include "stablemoe/prepare.h"

#include <math.h>
#include <stdio.h>

#include "app.h"
#include "prepare_images.h"
#include "print_pairs.h"
#include "stablemoe/arena.h"
#include "stablemoe/corpus.h"
#include "stablemoe/prepare_pairs.h"

typedef struct options {
  const char *output, *model, *extensions, *separator, *field;
  int64_t vocabulary, seed, document_bytes, sample_mib;
  double valid_share, test_share, coverage;
  smoe_words own[SMOE_SPLITS];
  int kind, raw;
  bool lines, dedup;
  smoe_words pairs[SMOE_SPLITS];
  int64_t max_tokens;
  double max_ratio;
  smoe_image_words images;
} options;

static const char *const KINDS[] = {"bpe", "unigram", NULL}; /* in the order of smoe_tokenizer_kind */

static const char *const RAWS[] = {"no", "uint16", "uint32", NULL};

/* The rest as in smoe_prepare_defaults and smoe_prepare_pairs_defaults. */
static const options DEFAULTS = {.seed = 1,
                                 .valid_share = -1,
                                 .test_share = -1,
                                 .kind = SMOE_BPE,
                                 .max_tokens = 256,
                                 .max_ratio = 4,
                                 .images = SMOE_IMAGE_WORDS};

static const smoe_option OPTIONS[] = {
    {'o', "output", SMOE_OPTION_OUTPUT, offsetof(options, output), "FILE",
     "the corpus; a file of that name is replaced once the new one is whole"},
    {0, "vocab", SMOE_OPTION_INT, offsetof(options, vocabulary), "N",
     "pieces of the vocabulary (default 8192)", 1, INT32_MAX},
    {0, "tokenizer", SMOE_OPTION_CHOICE, offsetof(options, kind), NULL,
     "what to train on the text (default bpe)", .choices = KINDS},
    {0, "model", SMOE_OPTION_FILE, offsetof(options, model), "FILE",
     "take this SentencePiece model, train none"},
    {0, "coverage", SMOE_OPTION_REAL, offsetof(options, coverage), "SHARE",
     "of characters that get pieces, the rarest are spelled in bytes (default: 0.9995, less where the "
     "vocabulary is "
     "small for the script)",
     0.01, 1},
    {0, "sample", SMOE_OPTION_INT, offsetof(options, sample_mib), "MIB",
     "train the tokenizer on so much text (default: 4, a sixteenth of a larger training split up to 64)", 1,
     1 << 14},
    {0, "train-text", SMOE_OPTION_WORDS, offsetof(options, own[SMOE_TRAIN]), "PATH",
     "a file or directory for training alone; may be given several times"},
    {0, "valid-text", SMOE_OPTION_WORDS, offsetof(options, own[SMOE_VALID]), "PATH",
     "the same, for validation alone"},
    {0, "test-text", SMOE_OPTION_WORDS, offsetof(options, own[SMOE_TEST]), "PATH",
     "the same, for the test alone"},
    {0, "valid", SMOE_OPTION_REAL, offsetof(options, valid_share), "SHARE",
     "of TEXT for validation, if that has no text of its own (default 0.05; of images 0.1)", 0, 1},
    {0, "test", SMOE_OPTION_REAL, offsetof(options, test_share), "SHARE",
     "of TEXT for the test, if that has no text of its own (default 0.05; of images 0.2)", 0, 1},
    {0, "dedup", SMOE_OPTION_FLAG, offsetof(options, dedup), NULL,
     "keep one of equal documents: of the test, else of validation, else of training"},
    {0, "seed", SMOE_OPTION_INT, offsetof(options, seed), "N",
     "of the choice of documents for the splits (default 1)", 0, 0x1p63},
    {0, "ext", SMOE_OPTION_TEXT, offsetof(options, extensions), "LIST",
     "endings of files to take from directories: .py,.txt (default: all text); .gz, .zst, .xz, .bz2 may "
     "follow"},
    {0, "field", SMOE_OPTION_TEXT, offsetof(options, field), "NAME",
     "field of JSON objects that is the document (default text); - takes JSON as plain text"},
    {0, "separator", SMOE_OPTION_TEXT, offsetof(options, separator), "TEXT",
     "documents end at this mark, such as '<|endoftext|>'; of token files, at this token id"},
    {0, "raw", SMOE_OPTION_CHOICE, offsetof(options, raw), NULL,
     "files are token ids without a header, as nanoGPT writes them", .choices = RAWS},
    {0, "lines", SMOE_OPTION_FLAG, offsetof(options, lines), NULL,
     "every line is a document (default: every file, cut at blank lines)"},
    {0, "document-bytes", SMOE_OPTION_INT, offsetof(options, document_bytes), "N",
     "cut a file at the first blank line past N bytes (default 16384, less for little text)", 1, INT32_MAX},
    {0, "pair", SMOE_OPTION_FILES, offsetof(options, pairs[SMOE_TRAIN]), "SRC-TGT SOURCE [TARGET]",
     "sentence pairs for translation, such as de-en text.de text.en: line n of TARGET translates line n of "
     "SOURCE; without TARGET each line of SOURCE is a pair with a tab between; files may be .gz; repeatable"},
    {0, "valid-pair", SMOE_OPTION_FILES, offsetof(options, pairs[SMOE_VALID]), "SRC-TGT SOURCE [TARGET]",
     "the same for validation (default: a share of the pairs); repeatable"},
    {0, "test-pair", SMOE_OPTION_FILES, offsetof(options, pairs[SMOE_TEST]), "SRC-TGT SOURCE [TARGET]",
     "the same for the test (default: a share of the pairs); repeatable"},
    {0, "max-tokens", SMOE_OPTION_INT, offsetof(options, max_tokens), "N",
     "leave out pairs with a longer side, tag and end counted (default 256)", 8, SMOE_PAIR_TOKENS_MAX},
    {0, "max-ratio", SMOE_OPTION_REAL, offsetof(options, max_ratio), "R",
     "leave out training pairs with one side more than R times as long as the other (default 4)", 1, 1e9},
#define IMAGES(member) offsetof(options, images.member)
    {0, "images", SMOE_OPTION_FILES, IMAGES(input[SMOE_TRAIN]), "IMAGES [LABELS]",
     "images instead of text: an IDX or NPY file (also .gz) and one of labels, an NPZ file of both, or a "
     "directory with one directory of PGM, PPM or PNG files per class"},
    {0, "valid-images", SMOE_OPTION_FILES, IMAGES(input[SMOE_VALID]), "IMAGES [LABELS]",
     "the same for validation (default: a share of the images)"},
    {0, "test-images", SMOE_OPTION_FILES, IMAGES(input[SMOE_TEST]), "IMAGES [LABELS]",
     "the same for the test (default: a share of the images)"},
    {0, "patch", SMOE_OPTION_TEXT, IMAGES(patch), "HxW",
     "pixels of a patch, such as 7x7 or 7; must divide the image (default: one patch per image, or per image "
     "of "
     "a grid)"},
    {0, "scale", SMOE_OPTION_REAL, IMAGES(scale), "S",
     "divide the images' numbers by S (default 255 for 8-bit images, else 1)", 1e-9, 1e9},
    {0, "grid", SMOE_OPTION_TEXT, IMAGES(grid), "RxC",
     "make images that are grids of R x C images, one of which decides the class"},
    {0, "signal", SMOE_OPTION_TEXT, IMAGES(signal), "LIST",
     "classes of which a grid has one image at a random place, such as 0,1; the others fill it"},
    {0, "synthetic", SMOE_OPTION_CHOICE, IMAGES(synthetic), NULL,
     "patterns: no files, but vectors of patches, one of which has the pattern of one of two classes",
     .choices = smoe_image_synthetics},
    {0, "samples", SMOE_OPTION_TEXT, IMAGES(samples), "TRAIN,VALID,TEST",
     "grids and patterns: images of each split (default 1000,200,1000)"},
    {0, "patches", SMOE_OPTION_INT, IMAGES(patches), "N", "patterns: patches of an image (default 16)", 2,
     65535},
    {0, "dimension", SMOE_OPTION_INT, IMAGES(dimension), "D", "patterns: numbers of a patch (default 64)", 4,
     65535},
    {0, "sets", SMOE_OPTION_INT, IMAGES(sets), "P", "patterns: sets of irrelevant patches (default 8)", 1,
     65535},
    {0, "delta-d", SMOE_OPTION_REAL, IMAGES(delta_d), "X",
     "patterns: inner product of the two classes' patterns (default 0)", -0.999, 0.999},
    {0, "delta-r", SMOE_OPTION_REAL, IMAGES(delta_r), "X",
     "patterns: inner product of the irrelevant sets' centres with one of them (default 0)", 0, 0.999},
    {0, "spread", SMOE_OPTION_REAL, IMAGES(spread), "X", "patterns: diameter of a set (default 0.1)", 0, 2},
#undef IMAGES
};

/* A share that was given, or the default of what is prepared. */
static double share(double given, double other) {
  return given < 0 ? other : given;
}

static void print_split(const smoe_corpus *corpus, smoe_split split, const char *name) {
  const double n = (double)corpus->n_tokens[split], bytes = (double)corpus->n_bytes[split];
  printf("%-6s %11lld %13lld ", name, (long long)corpus->n_documents[split],
         (long long)corpus->n_tokens[split]);
  if (n == 0)
    printf("%14.0f %12s\n", bytes, "-");
  else if (bytes > 0)
    printf("%14.0f %12.3f\n", bytes, bytes / n);
  else
    printf("%14s %12s\n", "unknown", "unknown");
}

/* What the default configuration means for this corpus. */
static void print_passes(const smoe_corpus *corpus) {
  smoe_config *config = smoe_app_config();
  const smoe_settings *s = smoe_config_settings(config);
  const double batch = (double)(s->train.batch_sequences * s->model.context),
               updates = (double)s->train.updates;
  const double train = (double)corpus->n_tokens[SMOE_TRAIN];
  if (train > 0)
    printf(
        "\nOne pass over the training split is %.4g updates of %.0f tokens (the default batch); the default "
        "%.0f updates are %.3g passes.\n",
        train / batch, batch, updates, updates * batch / train);
  smoe_config_destroy(config);
}

static smoe_status print_corpus(const char *path) {
  smoe_corpus corpus;
  SMOE_TRY(smoe_corpus_open_local(&corpus, path));
  printf("%s: vocabulary %d, fingerprint %016llx\n\n", path, corpus.vocabulary,
         (unsigned long long)corpus.fingerprint);
  printf("%-6s %11s %13s %14s %12s\n", "split", "documents", "tokens", "bytes", "bytes/token");
  print_split(&corpus, SMOE_TRAIN, "train");
  print_split(&corpus, SMOE_VALID, "valid");
  print_split(&corpus, SMOE_TEST, "test");
  if (isnan(corpus.bigram))
    puts("\nNo cross entropy of counts: training or validation is empty.");
  else
    printf("\nCross entropy of the validation split, in nats per token, with counts of the training split\n"
           "(add-one); a model has to beat the second:\n"
           "  unigram %8.4f   (perplexity %.1f)\n"
           "  bigram  %8.4f   (perplexity %.1f)\n",
           corpus.unigram, exp(corpus.unigram), corpus.bigram, exp(corpus.bigram));
  print_passes(&corpus);
  smoe_corpus_close(&corpus);
  return SMOE_OK;
}

static size_t n_own(const options *o) {
  return o->own[SMOE_TRAIN].n + o->own[SMOE_VALID].n + o->own[SMOE_TEST].n;
}

static bool has_text_options(const options *o) {
  return o->lines || o->extensions || o->document_bytes || o->separator || o->field || o->raw || o->dedup ||
         o->coverage > 0 || n_own(o) > 0;
}

static bool has_pairs(const options *o) {
  return o->pairs[SMOE_TRAIN].n + o->pairs[SMOE_VALID].n + o->pairs[SMOE_TEST].n > 0;
}

static smoe_status check(const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  if (smoe_image_words_any(&o->images)) {
    SMOE_CHECK(!has_pairs(o) && !has_text_options(o) && !o->sample_mib && arguments->n == 0, SMOE_ERR_CONFIG,
               "prepare: text and sentence pairs do not go into a corpus of images%s%s",
               arguments->n > 0 ? ": leave out " : "", arguments->n > 0 ? arguments->word[0] : "");
    SMOE_TRY(smoe_image_words_check(&o->images));
  } else if (has_pairs(o)) {
    SMOE_CHECK(o->pairs[SMOE_TRAIN].n > 0, SMOE_ERR_CONFIG,
               "prepare: no training pairs are named: --pair SRC-TGT SOURCE TARGET; see prepare --help");
    SMOE_CHECK(arguments->n == 0, SMOE_ERR_CONFIG,
               "prepare: '%s' is one file too many: a --pair takes one or two, and text does not go into a "
               "corpus of pairs",
               arguments->word[0]);
    SMOE_CHECK(!has_text_options(o), SMOE_ERR_CONFIG,
               "prepare: --lines, --ext, --document-bytes and the like are of text, not of pairs");
  } else {
    SMOE_CHECK((size_t)arguments->n + n_own(o) > 0, SMOE_ERR_CONFIG,
               "prepare: no text is named; see prepare --help");
  }
  SMOE_CHECK(o->output, SMOE_ERR_CONFIG, "prepare: -o CORPUS.h5 is missing; see prepare --help");
  return SMOE_OK;
}

static smoe_status prepare_text(const options *o, const smoe_arguments *arguments) {
  smoe_prepare_options wanted = smoe_prepare_defaults();
  wanted.output = o->output;
  wanted.model_path = o->model;
  wanted.kind = (smoe_tokenizer_kind)o->kind;
  wanted.vocabulary = (int)o->vocabulary;
  wanted.valid_share = share(o->valid_share, wanted.valid_share);
  wanted.test_share = share(o->test_share, wanted.test_share);
  wanted.seed = (uint64_t)o->seed;
  wanted.extensions = o->extensions;
  wanted.lines = o->lines;
  wanted.document_bytes = o->document_bytes;
  wanted.coverage = o->coverage;
  wanted.sample_bytes = o->sample_mib << 20;
  wanted.separator = o->separator;
  wanted.field = o->field;
  wanted.dedup = o->dedup;
  wanted.raw_bytes = 2 * o->raw;
  for (int s = 0; s < SMOE_SPLITS; s++) wanted.own[s] = (smoe_inputs){o->own[s].word, (int)o->own[s].n};
  SMOE_TRY(smoe_prepare(&wanted, arguments->word, arguments->n));
  return print_corpus(o->output);
}

static smoe_status prepare_pairs(const options *o) {
  smoe_prepare_pairs_options wanted = smoe_prepare_pairs_defaults();
  wanted.output = o->output;
  wanted.model_path = o->model;
  wanted.kind = (smoe_tokenizer_kind)o->kind;
  wanted.vocabulary = (int)o->vocabulary;
  wanted.valid_share = share(o->valid_share, wanted.valid_share);
  wanted.test_share = share(o->test_share, wanted.test_share);
  wanted.seed = (uint64_t)o->seed;
  wanted.sample_bytes = o->sample_mib << 20;
  wanted.max_tokens = o->max_tokens;
  wanted.max_ratio = o->max_ratio;
  smoe_pair_input *input[SMOE_SPLITS];
  for (int s = 0; s < SMOE_SPLITS; s++) {
    wanted.n_inputs[s] = o->pairs[s].n / 3;
    input[s] = smoe_alloc((wanted.n_inputs[s] + 1) * sizeof **input);
    for (size_t i = 0; i < wanted.n_inputs[s]; i++) {
      const char **word = o->pairs[s].word + 3 * i;
      input[s][i] = (smoe_pair_input){word[0], word[1], word[2]};
    }
    wanted.input[s] = input[s];
  }
  const smoe_status status = smoe_prepare_pairs(&wanted);
  for (int s = 0; s < SMOE_SPLITS; s++) smoe_free(input[s]);
  SMOE_TRY(status);
  return smoe_app_print_pairs(o->output);
}

static smoe_status prepare_images(const options *o) {
  smoe_prepare_images_options wanted = smoe_prepare_images_defaults();
  wanted.output = o->output;
  wanted.valid_share = share(o->valid_share, wanted.valid_share);
  wanted.test_share = share(o->test_share, wanted.test_share);
  wanted.seed = (uint64_t)o->seed;
  SMOE_TRY(smoe_image_words_read(&o->images, &wanted));
  SMOE_TRY(smoe_prepare_images(&wanted));
  return smoe_app_print_images(o->output);
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  if (smoe_image_words_any(&o->images)) return prepare_images(o);
  return has_pairs(o) ? prepare_pairs(o) : prepare_text(o, arguments);
}

const smoe_command smoe_command_prepare = {
    .name = "prepare",
    .arguments = "[TEXT...] -o CORPUS.h5",
    .title = "make a corpus from text files, directories, sentence pairs or images",
    .text =
        "Make a corpus from text files and directories (read recursively, in sorted order, without hidden "
        "files): plain text in UTF-8, or JSON objects with a text field (.jsonl, .json), also compressed "
        "(gzip, "
        "zstd, xz, bzip2). Or from token files (.bin): shards of llm.c, Megatron's with their .idx, raw ids "
        "(--raw). Serial: one rank does it.\n\n"
        "With --pair, make a corpus of sentence pairs for translation instead. One tokenizer serves all "
        "languages; in front of a source stands the tag of the language to translate to, such as <2en>. "
        "Pairs with an empty side, and those that --max-tokens and --max-ratio exclude, are left out and "
        "counted.\n\n"
        "With --images or --synthetic, make a corpus of images for classification instead, cut into patches "
        "(model.family cnn and vision).",
    .after =
        "TEXT is divided among the splits by documents, from 50 files on by files. If every file's name has "
        "the "
        "word train, valid (val, validation, dev) or test, files go where their names say; of token files, "
        "those with the words val or test do. What went where is printed. A share may be 0, or 1: a corpus "
        "that "
        "is all test evaluates a model on other text (with --model). Of pairs, a sentence goes to one split "
        "with "
        "all its translations.",
    .example = "stablemoe prepare texts/ -o corpus.h5 --vocab 8192",
    .serial = true,
    .usage = "texts",
    .min_args = 0,
    .max_args = -1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .check = check,
    .run = run,
};
