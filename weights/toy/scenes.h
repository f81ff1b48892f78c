// scenes.h: the toy world: captioned scenes of 128x128 pixels that the project draws for itself.
//
// A scene has six attributes. One of its captions, the first, names them all (only `day` may go unsaid), so a
// picture made from that caption can be judged: a classifier reads the attributes back off the picture.
//
// Two worlds share shapes and words. `broad` has many looks and many ways of captioning; the tiny model is
// pretrained on it. `flickr` has one look, slightly warm and grainy, and captions as Flickr8k's annotators
// write them; the model is fine-tuned, distilled and evaluated on it.
//
// About 8 % of the combinations of attributes are held out, chosen by a hash of the combination: the split
// `test` draws only these, `train` never does.
#ifndef SCENES_H
#define SCENES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SCENE_SIZE = 128, SCENE_CAPTIONS = 5, SCENE_CAPTION_BYTES = 256 };

typedef enum { WORLD_BROAD, WORLD_FLICKR } World;
typedef enum { SPLIT_TRAIN, SPLIT_TEST } Split;

enum { BOY, GIRL, MAN, WOMAN, DOG };
enum { DRESS, SHIRT, COAT, NO_GARMENT };                                           // a dog wears none
enum { RED, PINK, ORANGE, YELLOW, GREEN, BLUE, PURPLE, WHITE, BLACK, BROWN, TAN }; // the last two: dogs only
enum { STAND, RUN, JUMP, CLIMB, SIT, THROW, RIDE, FETCH };
enum { BEACH, PARK, STREET, SNOW, ENTRYWAY, MOUNTAIN };
enum { DAY, SUNSET, NIGHT };

typedef struct {
    int subject, garment, colour, action, place, time; // values of the enums above
} Scene;

// The six attributes by number, in the order of the struct: what a classifier with six heads needs.
enum { SCENE_ATTRIBUTES = 6 };
const char *scene_attribute_name(int attribute);        // "subject", "garment", ...
int scene_attribute_count(int attribute);               // how many values it has: 5, 4, 11, 8, 6, 3
const char *scene_value_name(int attribute, int value); // "girl", "none", ...
int scene_value(const Scene *scene, int attribute);

int scene_combination(const Scene *scene); // one number for all six, below 5 * 4 * 11 * 8 * 6 * 3
bool scene_held_out(const Scene *scene);

// Scene `index` of a world and split: pure functions of their arguments, safe in any thread, the same bytes
// on every machine. Captions are written differently from one another, at most 24 words each.
void scene_describe(World world, Split split, uint64_t seed, long index, Scene *scene,
                    char captions[SCENE_CAPTIONS][SCENE_CAPTION_BYTES]);
// rgb: (128, 128, 3). Where the figure is: box = left, top, right, bottom in pixels, right and bottom
// exclusive; with bench or bicycle, without ball and shadow. The last two may be NULL.
void scene_draw(World world, Split split, uint64_t seed, long index, unsigned char *rgb, Scene *scene,
                int box[4]);
// Draws attributes of the caller's choice; its variation of position, size and detail comes from the seed.
void scene_draw_as(World world, uint64_t seed, const Scene *scene, unsigned char *rgb, int box[4]);

// DIR/Images/00000.png ..., DIR/captions.txt (Flickr8k as Kaggle has it: `image,caption`), DIR/scenes.jsonl
// (n lines, an object each: "image", the six attributes, "world").
void scenes_write(const char *dir, long n, uint64_t seed, World world, Split split);
// A line of scenes.jsonl back into a Scene; dies where it is none. `name` is what the message calls the line.
Scene scene_parse(const char *line, size_t length, const char *name);

#endif
