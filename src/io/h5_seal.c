#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "stablemoe/arena.h"
#include "stablemoe/h5.h"

/* The seal stands in the user block, the bytes in front of the superblock that HDF5 leaves to its
 * users, as a text of lines that ends in NULs:
 *
 *   StableMoE file, seal 1
 *   bytes 123456              length of the file
 *   values 8192 65536         first byte of values, and the one after them; any number of these
 *   hash 0123456789abcdef     of the lines above and of every byte that is not in such a range
 */

static const char TITLE[] = "StableMoE file, seal 1\n";
static const unsigned char SIGNATURE[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};

/* What has a checksum or a fingerprint of its own, and is too large to be read twice. */
static const char *const VALUES[] = {"param/",
                                     "adam/m/",
                                     "adam/v/",
                                     "train/tokens",
                                     "valid/tokens",
                                     "test/tokens",
                                     "train/source/tokens",
                                     "valid/source/tokens",
                                     "test/source/tokens",
                                     "train/target/tokens",
                                     "valid/target/tokens",
                                     "test/target/tokens"};

/* More ranges than the block has room for: the smallest are hashed as all the rest is. */
enum { RANGES_MAX = 40, CHUNK = 1 << 20 };

typedef struct range {
  int64_t first, end;
} range;

typedef struct seal {
  int64_t bytes;
  range values[RANGES_MAX];
  size_t n_values;
} seal;

/* ---- which bytes are values ---- */

static bool is_values(const char *name) {
  for (size_t i = 0; i < sizeof VALUES / sizeof *VALUES; i++)
    if (strncmp(name, VALUES[i], strlen(VALUES[i])) == 0) return true;
  return false;
}

bool smoe_h5_place(hid_t file, const char *name, int64_t *first, int64_t *end) {
  *first = *end = 0;
  const hid_t set = H5Dopen2(file, name, H5P_DEFAULT);
  if (set < 0) return false;
  const haddr_t begin = H5Dget_offset(set);
  const hsize_t bytes = H5Dget_storage_size(set);
  H5Dclose(set);
  if (begin == HADDR_UNDEF) return false;
  *first = (int64_t)begin;
  *end = (int64_t)(begin + bytes);
  return true;
}

static int by_place(const void *a, const void *b) {
  const range *x = a, *y = b;
  return (x->first > y->first) - (x->first < y->first);
}

static int by_size(const void *a, const void *b) {
  const range *x = a, *y = b;
  const int64_t m = x->end - x->first, n = y->end - y->first;
  return m != n ? (m < n) - (m > n) : by_place(a, b);
}

/** Put the largest ranges into the seal, in the order of the file. Changes `all`. */
static void choose(seal *s, range *all, size_t n) {
  size_t joined = 0;
  qsort(all, n, sizeof *all, by_place);
  for (size_t i = 0; i < n; i++) {
    range *last = joined > 0 ? &all[joined - 1] : NULL;
    if (!last || all[i].first > last->end)
      all[joined++] = all[i];
    else if (all[i].end > last->end)
      last->end = all[i].end;
  }
  qsort(all, joined, sizeof *all, by_size);
  s->n_values = joined < RANGES_MAX ? joined : RANGES_MAX;
  memcpy(s->values, all, s->n_values * sizeof *all);
  qsort(s->values, s->n_values, sizeof *s->values, by_place);
}

/** Where a group cannot be listed nothing is left out, and a seal it is all the same. */
static void find_values(hid_t file, seal *s) {
  char **names;
  smoe_h5_list(file, "/", &names);
  size_t n_names = 0, n = 0;
  while (names[n_names]) n_names++;
  range *all = smoe_alloc((n_names + 1) * sizeof *all);
  for (char **name = names; *name; name++) {
    if (!is_values(*name)) continue;
    n += smoe_h5_place(file, *name, &all[n].first, &all[n].end) && all[n].end > all[n].first;
  }
  choose(s, all, n);
  smoe_free(all);
  smoe_h5_list_free(names);
}

/* ---- the text ---- */

/** The lines that the hash covers; returns their length. */
static size_t write_lines(const seal *s, char block[SMOE_H5_SEAL_BYTES]) {
  memset(block, 0, SMOE_H5_SEAL_BYTES);
  size_t used = (size_t)sprintf(block, "%sbytes %lld\n", TITLE, (long long)s->bytes);
  for (size_t i = 0; i < s->n_values; i++)
    used += (size_t)sprintf(block + used, "values %lld %lld\n", (long long)s->values[i].first,
                            (long long)s->values[i].end);
  return used;
}

static void write_block(const seal *s, uint64_t hash, char block[SMOE_H5_SEAL_BYTES]) {
  const size_t used = write_lines(s, block);
  sprintf(block + used, "hash %016llx\n", (unsigned long long)hash);
}

/** A number of at most 18 digits, so that it fits; -1 where there is none. */
static int64_t take_number(const char **text) {
  char *end;
  if (**text < '0' || **text > '9') return -1;
  const int64_t number = strtoll(*text, &end, 10);
  const bool fits = end - *text <= 18;
  *text = end;
  return fits ? number : -1;
}

static bool take_word(const char **text, const char *word) {
  const size_t length = strlen(word);
  if (strncmp(*text, word, length) != 0) return false;
  *text += length;
  return true;
}

/** Read a block; false where it is not, to the byte, what write_block makes. */
static bool read_block(const char block[SMOE_H5_SEAL_BYTES], seal *s, uint64_t *hash) {
  char text[SMOE_H5_SEAL_BYTES + 1] = {0}, again[SMOE_H5_SEAL_BYTES];
  memcpy(text, block, SMOE_H5_SEAL_BYTES);
  const char *at = text;
  *s = (seal){0};
  if (!take_word(&at, TITLE) || !take_word(&at, "bytes ")) return false;
  s->bytes = take_number(&at);
  int64_t before = SMOE_H5_SEAL_BYTES;
  while (s->n_values < RANGES_MAX && take_word(&at, "\nvalues ")) {
    range *r = &s->values[s->n_values++];
    r->first = take_number(&at);
    if (!take_word(&at, " ")) return false;
    r->end = take_number(&at);
    if (r->first < before || r->end <= r->first || r->end > s->bytes) return false;
    before = r->end;
  }
  if (!take_word(&at, "\nhash ")) return false;
  *hash = strtoull(at, NULL, 16);
  write_block(s, *hash, again);
  return memcmp(again, block, SMOE_H5_SEAL_BYTES) == 0;
}

/* ---- the hash ---- */

static bool read_at(int descriptor, char *to, size_t bytes, int64_t first) {
  while (bytes > 0) {
    const ssize_t got = pread(descriptor, to, bytes, (off_t)first);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    to += got;
    first += got;
    bytes -= (size_t)got;
  }
  return true;
}

static bool hash_range(int descriptor, XXH3_state_t *state, char *buffer, int64_t first, int64_t end) {
  for (; first < end; first += CHUNK) {
    const size_t n = end - first < CHUNK ? (size_t)(end - first) : CHUNK;
    if (!read_at(descriptor, buffer, n, first)) return false;
    XXH3_64bits_update(state, buffer, n);
  }
  return true;
}

/** Hash of the lines and of what is between the ranges; false where the file cannot be read. */
static bool hash_file(int descriptor, const seal *s, uint64_t *hash) {
  char block[SMOE_H5_SEAL_BYTES], *buffer = smoe_alloc(CHUNK);
  XXH3_state_t *state = XXH3_createState();
  XXH3_64bits_reset(state);
  XXH3_64bits_update(state, block, write_lines(s, block));
  int64_t first = SMOE_H5_SEAL_BYTES;
  bool fine = true;
  for (size_t i = 0; i < s->n_values && fine; i++) {
    fine = hash_range(descriptor, state, buffer, first, s->values[i].first);
    first = s->values[i].end;
  }
  fine = fine && hash_range(descriptor, state, buffer, first, s->bytes);
  *hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  smoe_free(buffer);
  return fine;
}

/* ---- sealing and checking ---- */

static smoe_status seal_open(int descriptor, const char *path, seal *s) {
  struct stat about;
  uint64_t hash;
  char block[SMOE_H5_SEAL_BYTES];
  errno = 0;
  bool fine = fstat(descriptor, &about) == 0;
  s->bytes = fine ? about.st_size : 0;
  fine = fine && hash_file(descriptor, s, &hash);
  if (fine) write_block(s, hash, block);
  fine = fine && pwrite(descriptor, block, sizeof block, 0) == (ssize_t)sizeof block;
  SMOE_CHECK(fine, SMOE_ERR_IO, "cannot seal '%s': %s", path, errno ? strerror(errno) : "a short write");
  return SMOE_OK;
}

smoe_status smoe_h5_seal(const char *path) {
  seal s = {0};
  hid_t file;
  SMOE_TRY(smoe_h5_open_unsealed(&file, path));
  const hid_t creation = H5Fget_create_plist(file);
  hsize_t room = 0;
  const herr_t bad = creation < 0 ? -1 : H5Pget_userblock(creation, &room);
  if (creation >= 0) H5Pclose(creation);
  find_values(file, &s);
  SMOE_TRY(smoe_h5_close(file));
  SMOE_CHECK(bad >= 0 && room == SMOE_H5_SEAL_BYTES, SMOE_ERR_FORMAT, "'%s' has no room for a seal", path);
  const int descriptor = open(path, O_RDWR);
  SMOE_CHECK(descriptor >= 0, SMOE_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  const smoe_status sealed = seal_open(descriptor, path, &s);
  close(descriptor);
  return sealed;
}

smoe_status smoe_h5_reseal(const char *path) {
  char block[SMOE_H5_SEAL_BYTES];
  seal s;
  uint64_t old;
  const int descriptor = open(path, O_RDWR);
  SMOE_CHECK(descriptor >= 0, SMOE_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  smoe_status status;
  if (read_at(descriptor, block, sizeof block, 0) && read_block(block, &s, &old))
    status = seal_open(descriptor, path, &s);
  else
    status = SMOE_FAIL(SMOE_ERR_IO, "the seal of '%s' does not read back as it was written", path);
  close(descriptor);
  return status;
}

static smoe_status check_open(int descriptor, const char *path) {
  struct stat about;
  seal s;
  uint64_t hash, found = 0;
  char front[SMOE_H5_SEAL_BYTES + sizeof SIGNATURE] = {0};
  SMOE_CHECK(fstat(descriptor, &about) == 0 && S_ISREG(about.st_mode), SMOE_ERR_IO,
             "'%s' is not a regular file", path);
  const int64_t bytes = about.st_size;
  errno = 0;
  SMOE_CHECK(read_at(descriptor, front, bytes < (int64_t)sizeof front ? (size_t)bytes : sizeof front, 0),
             SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  /* Made by another program: it has no room for a seal, and none of our damages makes it so. */
  if (memcmp(front, SIGNATURE, sizeof SIGNATURE) == 0) return SMOE_OK;
  const bool ours = strncmp(front, TITLE, strlen(TITLE)) == 0 ||
                    memcmp(front + SMOE_H5_SEAL_BYTES, SIGNATURE, sizeof SIGNATURE) == 0;
  SMOE_CHECK(ours, SMOE_ERR_FORMAT, "'%s' is not an HDF5 file, or its beginning is damaged", path);
  SMOE_CHECK(bytes >= (int64_t)sizeof front, SMOE_ERR_FORMAT, "'%s' is truncated: only %lld bytes are left",
             path, (long long)bytes);
  SMOE_CHECK(read_block(front, &s, &hash), SMOE_ERR_FORMAT,
             "'%s' is damaged: the seal in its first %d bytes is not whole", path, SMOE_H5_SEAL_BYTES);
  SMOE_CHECK(bytes == s.bytes, SMOE_ERR_FORMAT, "'%s' is %s: it has %lld bytes and was written with %lld",
             path, bytes < s.bytes ? "truncated" : "damaged, something was appended", (long long)bytes,
             (long long)s.bytes);
  SMOE_CHECK(hash_file(descriptor, &s, &found), SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  SMOE_CHECK(found == hash, SMOE_ERR_FORMAT,
             "'%s' is damaged, or another program has changed it: its structure, attributes and small "
             "tables are not what was sealed",
             path);
  return SMOE_OK;
}

bool smoe_h5_is_sealed(const char *path) {
  char front[sizeof TITLE - 1];
  const int descriptor = open(path, O_RDONLY);
  const bool sealed = descriptor >= 0 && read_at(descriptor, front, sizeof front, 0) &&
                      memcmp(front, TITLE, sizeof front) == 0;
  if (descriptor >= 0) close(descriptor);
  return sealed;
}

smoe_status smoe_h5_check_seal(const char *path) {
  const int descriptor = open(path, O_RDONLY);
  SMOE_CHECK(descriptor >= 0, SMOE_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  const smoe_status status = check_open(descriptor, path);
  close(descriptor);
  return status;
}
