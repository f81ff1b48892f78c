// io.h: file formats. JSON, safetensors, CLIP's tokenizer, pictures, captioned data sets, npz.
//
// Nothing here knows a model. Readers check everything that a file claims before using it and die (base.h)
// with one line that names the file, the thing in it, the value found and the value expected.
//   json.c  safetensors.c  tokenizer.c  unicode.c  image.c  dataset.c  npz.c
#ifndef IO_H
#define IO_H

#include "lib/base.h"
#include "lib/nn/nn.h" // Type, Params

// ---- json.c: a small JSON reader (RFC 8259) --------------------------------------------------------------

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonKind;
typedef struct Json {
    JsonKind kind;
    const char *key;    // its name, where it is the member of an object
    double number;      // JSON_NUMBER; JSON_BOOL: 0 or 1
    const char *string; // JSON_STRING: UTF-8 with a NUL behind it
    size_t length;      // of the string in bytes (it may itself hold a NUL), or the number of items
    struct Json *items; // JSON_ARRAY, JSON_OBJECT: children in file order
} Json;

// `name` is what an error message calls the text. Depth is limited to 64, so a hostile file cannot exhaust
// the stack. Duplicate keys: the last one counts, as in Python.
Json *json_parse(const char *text, size_t length, const char *name);
Json *json_load(const char *path);
void json_free(Json *root);
const Json *json_get(const Json *object, const char *key); // NULL where absent; also where object is NULL
// The member's value, or `fallback` where it is absent or null; a member of another kind dies.
double json_get_number(const Json *object, const char *key, double fallback);
bool json_get_bool(const Json *object, const char *key, bool fallback);
const char *json_get_string(const Json *object, const char *key, const char *fallback);
void json_write_string(Output *o, const char *s); // quoted and escaped

// ---- safetensors.c: named tensors in a file --------------------------------------------------------------

// A tensor as it lies in a mapped file: row-major, nothing converted.
typedef struct {
    const char *name;
    Type type;
    int ndim;
    int64_t shape[8];
    const void *data; // into the mapping; little-endian, maybe unaligned
    size_t count;     // elements
    const char *file; // where it was found, for messages
} Stored;

typedef struct Store Store;
// One .safetensors file, or a "*.safetensors.index.json" with its shards. Header, offsets, types and sizes
// are checked at once; data is read only when touched.
Store *store_open(const char *path);
void store_close(Store *s);
size_t store_count(const Store *s);
const Stored *store_at(const Store *s, size_t i);            // in file order
const Stored *store_find(const Store *s, const char *name);  // NULL where absent
const char *store_metadata(const Store *s, const char *key); // "__metadata__" entry or NULL
void store_read_f32(const Stored *t, float *out);            // all elements, converted to fp32
float *store_floats(const Stored *t, const char *path); // the same in a new array; a NaN or an infinity dies
void store_done_with(const Stored *t); // its pages may leave memory (they come back when touched)

// Writing is in two rounds, so that a model larger than memory can pass through: first declare every
// tensor, then deliver the data in the same order. The file appears under its name at the commit.
typedef struct StoreWriter StoreWriter;
StoreWriter *store_create(const char *path);
void store_metadata_add(StoreWriter *w, const char *key, const char *value);
void store_declare(StoreWriter *w, const char *name, Type type, int ndim, const int64_t *shape);
void store_data(StoreWriter *w, const void *data, size_t bytes);      // may come in pieces
void store_data_f32(StoreWriter *w, const float *data, size_t count); // converted to the type declared
void store_commit(StoreWriter *w);

// Exact conversions, round to nearest even; subnormals and NaN kept.
float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);
float bf16_to_f32(uint16_t h);
uint16_t f32_to_bf16(float f);

// ---- params_io.c: parameters (nn.h) from files and to files -------------------------------------------------

// Fills every parameter from find(context, name), which returns NULL for an unknown name. Shapes must agree
// (ones at the end of a shape do not count: a linear layer may be stored as a 1x1 convolution); 4-D tensors are
// brought from file's (out, in, kh, kw) to memory's (out, kh, kw, in). Weights keep their stored type. A missing
// or misshapen tensor, a NaN or an infinity dies with the tensor's name and `where` it was looked for.
typedef const Stored *FindStored(void *context, const char *name);
void params_load(const Params *p, FindStored *find, void *context, const char *where);
// Under --verbose: a note that names what `s` holds beyond what the parameters asked for.
void params_note_extra(const Params *p, FindStored *find, void *context, const Store *s, const char *where);
void params_to_f32(const Params *p); // for training
// Writes them as `type`, without the first `strip` characters of their names.
void params_save(const Params *p, const char *path, size_t strip, Type type);
// The same with one more entry in the file's metadata.
void params_save_with(const Params *p, const char *path, size_t strip, Type type, const char *key,
                      const char *value);
// One parameter as a new host array in file order (out, in, kh, kw).
float *param_read(const Tensor *t);
void param_write(Tensor *t, const float *file_order);

// ---- tokenizer.c, unicode.c: CLIP's byte-pair encoder ----------------------------------------------------

// Equal to transformers' CLIPTokenizer, token for token.
typedef struct Tokenizer Tokenizer;
// DIR holds vocab.json + merges.txt (+ tokenizer_config.json), or bpe_simple_vocab_16e6.txt[.gz].
Tokenizer *tokenizer_open(const char *dir);
void tokenizer_close(Tokenizer *t);
int tokenizer_max_length(const Tokenizer *t); // model_max_length, else 77
int tokenizer_start(const Tokenizer *t), tokenizer_end(const Tokenizer *t), tokenizer_pad(const Tokenizer *t);
// Ids with start and end token, cut to max_length as diffusers does (the end token stays last). Writes at
// most max_length ids and returns how many. Where something was cut off, *cut_at (if not NULL) is the byte
// offset in text of the first token that was left out, else -1.
int tokenizer_encode(const Tokenizer *t, const char *text, int *ids, int max_length, long *cut_at);

// Byte-pair training on a text's words (the tiny model's own merges): writes vocab.json, merges.txt,
// tokenizer_config.json and special_tokens_map.json to DIR, `vocab_size` tokens in all (256 bytes twice,
// merges, two special tokens), `max_length` as model_max_length. Dies where the texts have too few words for that
// many; without texts, 514 gives a tokenizer of bytes alone.
void tokenizer_train(const char *dir, const char *const *texts, size_t count, int vocab_size, int max_length);

// ---- image.c: pictures -----------------------------------------------------------------------------------

typedef struct {
    int width, height;
    unsigned char *rgb; // height rows of width pixels, 3 bytes each
} Image;

// JPEG or PNG, told by content. Gray, palette, CMYK, 16-bit are brought to 8-bit RGB; transparency is
// dropped, as PIL's convert("RGB") does. NULL and a reason where it cannot be read.
Image *image_try_load(const char *path, const char **reason);
Image *image_load(const char *path); // dies where it cannot
Image *image_new(int width, int height);
void image_free(Image *image);
// PNG; `parameters` (UTF-8, may be NULL) goes into a text chunk of that name: tEXt if Latin-1, else iTXt.
void image_save_png(const char *path, const Image *image, const char *parameters);
char *image_png_parameters(const char *path); // that text, or NULL

// Pillow's resize with antialiasing (8 bits in, 8 bits out, two passes, the same fixed-point arithmetic).
typedef enum { RESIZE_BILINEAR, RESIZE_BICUBIC, RESIZE_LANCZOS } Resize;
Image *image_resize(const Image *image, int width, int height, Resize filter);
Image *image_crop(const Image *image, int left, int top, int width, int height);
// Short side to `size`, then the middle (size x size): what the field's training scripts do.
Image *image_center_square(const Image *image, int size, Resize filter);

// ---- dataset.c: pictures with captions -------------------------------------------------------------------

typedef struct {
    char *path;      // of the picture
    char *name;      // as the captions file has it
    char **captions; // caption_count of them
    int caption_count;
    char *split; // "train", "restval", "val", "test", or NULL where the layout knows none
} Sample;
typedef struct {
    Sample *samples;
    size_t count;
    const char *layout; // "captions.txt", "Flickr8k.token.txt", ...: which one was found
} Dataset;
// Every layout of the interface: see dataset.c. A picture listed but absent is noted, counted and left out;
// more than 1 % of them dies.
Dataset *dataset_open(const char *dir);
void dataset_close(Dataset *d);
// Is it one to train on: of no split, "train", or "restval" (what Karpathy's splits left over of the validation set)?
bool dataset_trains(const Sample *s);
char **list_images(const char *dir, size_t *count); // *.png *.jpg *.jpeg, sorted by name, paths
// After a data set of `count` pictures was written into the folder `images`: a note if there are others, of one before.
void dataset_note_others(const char *images, size_t count);

// ---- npz.c: NumPy's .npz ---------------------------------------------------------------------------------

// The array `key` of a .npz as float64 in row-major order (any float or integer type, C or Fortran order,
// stored or deflated, zip64); shape and ndim (at most 4) are filled in.
double *npz_read(const char *path, const char *key, int64_t shape[4], int *ndim);
typedef struct {
    const char *key;
    const double *data;
    int ndim;
    int64_t shape[4];
} NpzArray;
void npz_write(const char *path, const NpzArray *arrays, int count); // stored, float64
// Inflates a zlib/gzip/raw deflate stream; NULL where it is damaged. The caller frees the result.
unsigned char *inflate_gzip(const unsigned char *data, size_t bytes, size_t *out_bytes);
// The CRC-32 of zip, gzip and PNG; begins with crc = 0, and goes on with what it returned.
uint32_t crc32_update(uint32_t crc, const void *data, size_t bytes);

#endif
