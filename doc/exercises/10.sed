# lora.c: to be written: an adapter becomes part of the weights
# try: lora merge --lora weights/tiny-lora.safetensors -o run/merged
/^void lora_merge/,/^}/ s/^        adapter_add(sum, .*/        \/\/ to be written: what lora_attach() makes a layer add to W x becomes part of W, here `sum`/
