# make        builds ./sd for this machine's processor
# make help   lists every target
CC      ?= gcc
CFLAGS  ?= -O3 -g
BUILD   ?= build
# Fused multiply-add must be allowed by name: -std=c17 switches it off.
BASE    := -std=c17 -Wall -Wextra -Wshadow -ffp-contract=fast -fno-math-errno -fno-trapping-math -MMD -MP -Ilib -I.
OPENMP  := $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo -fopenmp)
ARCH    := $(shell uname -m)

# The stb headers come from the distribution's package; the compiler finds them in one of these.
STB     := $(firstword $(wildcard /usr/include/stb /usr/local/include/stb /opt/homebrew/include/stb /usr/local/include /opt/homebrew/include))
INCLUDE := $(if $(STB),-isystem $(STB))

PHASES  := $(wildcard sd.c lcm.c lora.c fid.c)
ABOVE   := $(PHASES) $(wildcard lib/*.c) $(wildcard weights/*.c)
ABOVE_O := $(patsubst %.c,$(BUILD)/%.o,$(ABOVE))

# cpu/: memory.c and cpu.c once; the vector kernels once for each instruction set, told apart by -DISA=name.
VECTOR  := $(filter-out cpu/plain.c cpu/memory.c cpu/cpu.c,$(wildcard cpu/*.c))
ifeq ($(ARCH),x86_64)
ISAS    := avx512 avx2 portable
else
ISAS    := portable
endif
FLAGS_avx512   := -march=x86-64-v4 -mprefer-vector-width=512
FLAGS_avx2     := -march=x86-64-v3
FLAGS_portable :=
CPU_O   := $(BUILD)/cpu/memory.o $(BUILD)/cpu/cpu.o $(foreach isa,$(ISAS),$(patsubst cpu/%.c,$(BUILD)/cpu/%.$(isa).o,$(VECTOR)))

all: sd

sd: $(ABOVE_O) $(CPU_O)
	$(CC) $(CFLAGS) $(OPENMP) -o $@ $^ -lm

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(OPENMP) $(INCLUDE) -c $< -o $@

define VECTOR_RULE
$(BUILD)/cpu/%.$(1).o: cpu/%.c
	@mkdir -p $$(@D)
	$$(CC) $$(BASE) $$(CFLAGS) $$(FLAGS_$(1)) $$(OPENMP) -DISA=$(1) -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(eval $(call VECTOR_RULE,$(isa))))

clean:
	rm -rf $(BUILD) sd sd-plain sd-emulate

.PHONY: all clean
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
