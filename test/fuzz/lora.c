// lora.c: any bytes as adapters for the tiny model's layers: loaded, saved in another spelling, loaded again.
#include "fuzz.h"
#include "folder.h"
#include "lib/io/architectures.h"
#include "sd.h"

static void fuzz_one(unsigned char *data, size_t size) {
    static Params p;
    if (!p.count) {
        backend_init(1);
        const Architecture *t = architecture("tiny");
        text_encoder_new(text_config(json_parse(t->text_encoder, strlen(t->text_encoder), "text")), &p);
        unet_new(unet_config(json_parse(t->unet, strlen(t->unet), "unet")), &p);
    }
    fuzz_write_store("lora.safetensors", data, size);
    Lora *l = lora_load(&p, fuzz_path("lora.safetensors"));
    char *again = fuzz_path("again.safetensors");
    lora_save(l, again, size % 2 ? LORA_KOHYA : LORA_PEFT, F32);
    lora_free(l);
    if (setjmp(fuzz_death)) abort(); // what it writes it must read
    lora_free(lora_load(&p, again));
}
