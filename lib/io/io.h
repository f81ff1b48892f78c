// io.h: file formats. JSON, safetensors, CLIP's tokenizer, pictures, captioned data sets, npz.
//
// Nothing here knows a model. Readers check everything that a file claims before they use it; where it is
// wrong they die (base.h). What they return belongs to the caller, who frees it by the function named beside
// it, or else by free().
//   json.c  safetensors.c  params_io.c  names.c  lora_names.c  tokenizer.c  unicode.c  image.c  dataset.c
//   npz.c  deflate.c  file_kind.c; and with headers of their own: pairs.c  train.c  architectures.c
#ifndef IO_H
#define IO_H

#include "lib/base.h"
#include "lib/nn/nn.h" // Type, Params

// ---- json.c: a small JSON reader (RFC 8259) --------------------------------------------------------------

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonKind;
typedef struct Json {
    JsonKind kind;
    const char *key; // its name, where it is the member of an object
    union {
        double number;      // JSON_NUMBER; JSON_BOOL: 0 or 1
        const char *string; // JSON_STRING: UTF-8 with a NUL behind it and none within
    };
    const char *file;   // what json_parse() called the text
    size_t length;      // number of items; 0 for all kinds without any, so that no loop runs over them
    struct Json *items; // JSON_ARRAY, JSON_OBJECT: children in the file's order
} Json;

// `name` is what an error message calls the text; it dies with line and column. Depth is limited to 64, so
// that a hostile file cannot exhaust the stack. Of equal keys the last one counts, as in Python.
Json *json_parse(const char *text, size_t length, const char *name);
Json *json_load(const char *path);
void json_free(Json *root);
const Json *json_get(const Json *object, const char *key); // NULL where absent, or object is none
const char *json_file(const Json *value);                  // what json_parse() called it, for messages
// The member's value, or `fallback` where it is absent or null. Dies where it is of another kind.
double json_get_number(const Json *object, const char *key, double fallback);
bool json_get_bool(const Json *object, const char *key, bool fallback);
const char *json_get_string(const Json *object, const char *key, const char *fallback);
// A value in a line, which the caller frees. quote '"': JSON. '\'': as Python has it, 'silu'.
char *json_text(const Json *value, char quote);
// A JSON string of it, which the caller frees: in quotes, escaped, and what is no UTF-8 as U+FFFD.
char *json_quote(const char *s);
// The keys that a configuration may have: "act_fn", or several, "in_channels|out_channels", or all with one
// end, "*_token". `obeyed` lists the values that this program obeys, or their kinds: "'silu'|'swish'|null",
// "number|null"; also boolean, string, list and object. NULL where the value does not matter.
typedef struct {
    const char *key, *obeyed;
} JsonKey;
// Dies of a key whose value is not obeyed, and names both. Notes a key that is not among `keys`, unless its
// value is null or false or its name begins with "_". `file` is for the messages; a NULL key ends `keys`.
void json_check_keys(const Json *object, const char *file, const JsonKey *keys);

// ---- safetensors.c: named tensors in a file --------------------------------------------------------------

// A tensor as it is in a mapped file: row-major, nothing converted.
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
// are checked at once, and a file that is damaged dies here; data is read when touched.
Store *store_open(const char *path);
void store_close(Store *s);
size_t store_count(const Store *s);
const Stored *store_at(const Store *s, size_t i);            // in file order
const Stored *store_find(const Store *s, const char *name);  // NULL where absent
const char *store_metadata(const Store *s, const char *key); // "__metadata__" entry or NULL
void store_read_f32(const Stored *t, float *out);            // all elements, converted to fp32
float *store_floats(const Stored *t,
                    const char *path); // in a new array; dies of NaN, infinity, and a double beyond fp32
void store_done_with(const Stored *t); // its pages may leave memory (they come back when touched)

// Writing takes two rounds, so that a model larger than memory can pass through: first every tensor is
// declared, then their data is written in the same order. The file appears under its name at the commit. A
// tensor declared twice, data that is missing or too long, and a value too large for fp16 die.
typedef struct StoreWriter StoreWriter;
StoreWriter *store_create(const char *path);
void store_metadata_add(StoreWriter *w, const char *key, const char *value);
void store_declare(StoreWriter *w, const char *name, Type type, int ndim, const int64_t *shape);
void store_data(StoreWriter *w, const void *data, size_t bytes);      // may come in pieces
void store_data_f32(StoreWriter *w, const float *data, size_t count); // converted to the type declared
void store_seal(
    StoreWriter *w); // before the data: an entry "digest" of all the file's bytes, for store_sealed()
void store_commit(StoreWriter *w);
bool store_sealed(const char *path); // the digest is there and agrees: no bit has changed

// The number of elements of a shape; false where it is beyond 2^53, even if a dimension is 0.
bool shape_count(const int64_t *shape, int ndim, size_t *count);
// "(320, 4, 3, 3)", for messages; returns text.
const char *shape_text(char text[200], const int64_t *shape, int ndim);

// Exact conversions, round to nearest even; subnormals and NaN kept.
float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);
float bf16_to_f32(uint16_t h);
uint16_t f32_to_bf16(float f);

// ---- params_io.c: parameters (nn.h) from files and to files -----------------------------------------------

// Fills every parameter from find(context, name), which returns NULL for an unknown name. Shapes must agree,
// but for ones at the end: a linear layer may be stored as a 1x1 convolution. Convolutions go from the file's
// order (out, in, kh, kw) to (out, kh, kw, in). Weights keep their stored type: F32, F16 or BF16; F64 becomes
// F32, and F32 what backend.weights says where it is multiplied. Dies, naming `where`, of a tensor that is
// missing or of another shape or type, a NaN or an infinity.
typedef const Stored *FindStored(void *context, const char *name);
void params_load(const Params *p, FindStored *find, void *context, const char *where);
// Under --verbose: a note of what `s` has beyond what the parameters asked for.
void params_note_extra(const Params *p, FindStored *find, void *context, const Store *s, const char *where);
void params_to_f32(const Params *p); // converts in memory, for training
// Writes them as `type`, without the first `strip` characters of their names. key: of metadata, or NULL.
void params_save(const Params *p, const char *path, size_t strip, Type type, const char *key,
                 const char *value);
// One parameter as a new host array in file order (out, in, kh, kw).
float *param_read(const Tensor *t);
void param_write(Tensor *t, const float *file_order);

// ---- names.c: what other files call a parameter ----------------------------------------------------------

// Spelling `number` of a parameter's name, "unet.conv_in.weight". 0 is that of the original code's files,
// "model.diffusion_model.input_blocks.0.0.weight". False from the first number on that has none.
bool name_spelling(const char *name, int number, char *out, size_t room);

// ---- lora_names.c: names of tensors in LoRA files ---------------------------------------------------------

typedef enum { LORA_NO_ROLE, LORA_DOWN, LORA_UP, LORA_ALPHA } LoraRole;
typedef enum { LORA_PEFT, LORA_KOHYA } LoraFormat; // the spellings that are written; more are read
// What a key's tensor is to its layer, and how many of the key's characters name the layer.
LoraRole lora_role(const char *key, size_t *layer_length);
// "a LoHa (Hadamard products)": what a key belongs to that is no LoRA; else NULL.
const char *lora_foreign(const char *key);
// Adds a layer's names ("unet.conv_in") in all spellings to a table, in the form in which they are compared.
void lora_names_add(Names *names, const char *layer, int number);
int lora_find_layer(const Names *names, const char *key, size_t layer_length); // that number, or -1
// The key for a layer ("unet.conv_in") in the given spelling; the caller frees it. PEFT knows no alpha keys.
char *lora_key(const char *layer, LoraRole role, LoraFormat f);

// ---- tokenizer.c, unicode.c: CLIP's byte-pair encoder ----------------------------------------------------

// Equal to transformers' CLIPTokenizer, token for token.
typedef struct Tokenizer Tokenizer;
// DIR holds tokenizer.json, or vocab.json + merges.txt (each + tokenizer_config.json, added_tokens.json,
// ...), or bpe_simple_vocab_16e6.txt[.gz]. Dies of a tokenizer.json that is not CLIP's.
Tokenizer *tokenizer_open(const char *dir);
void tokenizer_close(Tokenizer *t);
int tokenizer_max_length(const Tokenizer *t); // model_max_length, else 77
int tokenizer_start(const Tokenizer *t), tokenizer_end(const Tokenizer *t), tokenizer_pad(const Tokenizer *t);
int tokenizer_last(const Tokenizer *t); // the largest id: its text encoder knows one more at least
// Ids of a text with start and end token, cut to max_length as diffusers does: the end token stays last.
// Writes at most max_length ids and returns how many. *cut_at (may be NULL) is the byte offset in text of the
// first token that was cut off, or -1. Dies of text that is not UTF-8.
int tokenizer_encode(const Tokenizer *t, const char *text, int *ids, int max_length, long *cut_at);

// Byte-pair training on a text's words (the tiny model's own merges): writes vocab.json, merges.txt,
// tokenizer_config.json and special_tokens_map.json to DIR, `vocab_size` tokens in all (256 bytes twice,
// merges, two special tokens), `max_length` as model_max_length. Dies where the texts have too few words for
// that many; without texts, 514 gives a tokenizer of bytes alone.
void tokenizer_train(const char *dir, const char *const *texts, size_t count, int vocab_size, int max_length);

// ---- image.c: pictures -----------------------------------------------------------------------------------

typedef struct {
    int width, height;
    unsigned char *rgb; // height rows of width pixels, 3 bytes each
} Image;

// JPEG or PNG, recognised by content, as 8-bit RGB by the rules of PIL's convert("RGB"), for people to look
// at: turned as EXIF says, 16 bits scaled. Where it cannot be read: NULL, and *reason (unless reason is NULL)
// is valid until the thread's next call.
Image *image_try_load(const char *path, const char **reason);
// The same for measuring, as pytorch-fid reads it: neither turned nor scaled. *differs: would that have made
// another picture of it? (Where `differs` is NULL, it does as image_try_load().)
Image *image_try_measure(const char *path, const char **reason, bool *differs);
Image *image_load(const char *path);   // dies where it cannot
bool image_is_whole(const char *path); // could it be read?
Image *image_new(int width, int height);
void image_free(Image *image);
// PNG; `parameters` (UTF-8, may be NULL) goes into a text chunk of that name: tEXt if Latin-1, else iTXt.
void image_save_png(const char *path, const Image *image, const char *parameters);
unsigned char *image_png(const char *name, const Image *image, int *size); // its bytes; name: for a message
char *image_png_parameters(const char *path);                              // that text, or NULL
// An animated PNG, which viewers that know none show as its first frame. frame_ms: how long each stays.
void image_save_film(const char *path, Image *const *frames, int count, int frame_ms, int last_ms);

// Pillow's resize with antialiasing (8 bits in, 8 bits out, two passes, the same fixed-point arithmetic).
typedef enum { RESIZE_BILINEAR, RESIZE_BICUBIC, RESIZE_LANCZOS } Resize;
Image *image_resize(const Image *image, int width, int height, Resize filter);
// The same on floats, neither rounded nor cut to 0..255: out (height, width, 3).
void image_resize_f32(float *out, const Image *image, int width, int height, Resize filter);
// PyTorch's bilinear interpolate (align_corners=False, antialias=False): out (height, width, 3), in [0, 1].
void image_interpolate(float *out, const Image *image, int width, int height);
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
// A folder in one of the layouts of Flickr8k and Flickr30k: see dataset.c. Pictures that are listed but
// absent, and rows without a caption, are left out with a note. Dies where more than 10 pictures and more
// than 1 % are absent, where all are, and of lines in another form.
Dataset *dataset_open(const char *dir);
void dataset_close(Dataset *d);
// Whether it is of no split, of "train", or of "restval" (the rest of Karpathy's validation set).
bool dataset_trains(const Sample *s);
// Brings the samples of a part to the front, in their order; returns how many they are. Without splits the
// last `hold_out` samples, at most half, are held out; else those of the split "test".
typedef enum { PART_ALL, PART_TRAIN, PART_HELD_OUT } DatasetPart;
size_t dataset_choose(Dataset *set, DatasetPart part, size_t hold_out);
// Paths of its *.png, *.jpg, *.jpeg, by name. deep: also of folders within it, but hidden ones and links.
char **list_images(const char *dir, bool deep, size_t *count);
// After a data set of `count` pictures was written to the folder `images`: a note if there are others.
void dataset_note_others(const char *images, size_t count);

// ---- npz.c: NumPy's .npz ---------------------------------------------------------------------------------

// The array `key` of a .npz as float64 in row-major order. It may be of any float or integer type, in C or
// Fortran order, stored or deflated (at most 2 GB), in zip64, of at most `most` numbers. ndim (at most 4) and
// shape are filled in; the rest of shape is 1. Dies where the array is absent or the archive is damaged.
double *npz_read(const char *path, const char *key, size_t most, int64_t shape[4], int *ndim);
bool npz_has(const char *path, const char *key); // dies where the archive is damaged
typedef struct {
    const char *key;
    const double *data;
    int ndim;
    int64_t shape[4];
} NpzArray;
void npz_write(const char *path, const NpzArray *arrays, int count); // stored, float64

// ---- deflate.c: compressed data, checksums, numbers in files ---------------------------------------------

// A gzip file (of one or more members) or a zlib stream, inflated; NULL where it is damaged.
unsigned char *inflate_gzip(const unsigned char *data, size_t bytes, size_t *out_bytes);
// Deflated data without header or checksum into `room` bytes, at most 2 GB. Returns how many it took, or
// SIZE_MAX where it is damaged or needs more. 8 bytes of anything should follow it and count in `bytes`.
size_t inflate_into(void *out, size_t room, const unsigned char *data, size_t bytes);
enum { MOST_INFLATED = 1032 }; // bytes that one byte of deflated data can become: 258 of 2 bits
// The CRC-32 of zip, gzip and PNG; begins with crc = 0, and goes on with what it returned.
uint32_t crc32_update(uint32_t crc, const void *data, size_t bytes);
uint64_t little_endian(const unsigned char *p, int bytes); // the first `bytes` (at most 8) as a number
uint32_t big_endian_32(const unsigned char *p);

// ---- file_kind.c: what a file is, for messages ------------------------------------------------------------

// "a PNG picture", "a web page", "a pickle", "a Git LFS pointer (...)", "a safetensors file", ...: what the
// first n bytes of a file are; NULL where they tell nothing. 512 bytes are enough.
const char *file_kind(const unsigned char *bytes, size_t n);
// The same of a safetensors file, by its tensors: "a LoRA", "latents", ...; else "tensors".
const char *store_kind(const Store *s);

#endif
