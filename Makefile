# make        builds ./sd for this machine's processor
# make help   lists every target
CC      ?= gcc
CFLAGS  ?= -O3 -g
BUILD   ?= build
# All processors work; one short line a file. `make V=1` prints whole commands, `make -j1` uses one.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(or $(JOBS),$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1))
endif
say      = $(if $(V),,@printf '  %-5s %s\n' $(1) '$(2)';)
# Fused multiply-add must be allowed by name: -std=c17 switches it off.
BASE    := -std=c17 -Wall -Wextra -Wshadow -ffp-contract=fast -fno-math-errno -fno-trapping-math -MMD -MP -I.
OPENMP  := $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && \
             echo -fopenmp)
ARCH    := $(shell uname -m)

# The stb headers come from the distribution's package; the compiler finds them in one of these.
STB_DIRS := /usr/include/stb /usr/local/include/stb /opt/homebrew/include/stb /usr/include /usr/local/include
STB      = $(firstword $(patsubst %/stb_image.h,%,$(wildcard $(STB_DIRS:%=%/stb_image.h))))

# Everything above lib/nn/kernels.h: the same objects for every backend.
ABOVE   := $(filter-out lib/nn/ranks_%.c cli/web.c,$(wildcard sd.c samplers.c lcm.c lora.c fid.c \
             lib/*.c lib/*/*.c weights/toy/*.c cli/*.c))
MPI     ?= $(NCCL)
RANKED  := $(if $(MPI),mpi $(if $(NCCL),,host),none)
ABOVE_O := $(ABOVE:%.c=$(BUILD)/%.o) $(RANKED:%=$(BUILD)/lib/nn/ranks_%.o)

# MPI=1: many processes share a run (doc/SCALE.md). `mpicc -show` says what its compiler would add.
# NCCL=1, with `make cuda` or `make emulate`, is that and NCCL for what GPUs exchange.
MPICC   ?= mpicc
MPI_ADDS := $(if $(MPI),$(or $(shell $(MPICC) -show 2>/dev/null),$(error MPI=1 needs $(MPICC), of an MPI)))
MPI_LIBS := $(filter -L% -l% -Wl%,$(MPI_ADDS)) $(if $(MPI),-lpthread)
LIBS    := -lm $(MPI_LIBS)

# cpu/: the fast kernels are one file, compiled once for each instruction set; SD_ISA=plain selects the
# definitions instead, `sd sample --dtype bf16` that of AMX or AVX512_BF16.
X86     := $(filter x86_64,$(ARCH))
ISAS    := $(if $(X86),avx512 avx2) portable $(if $(X86),amx_bf16 avx512_bf16)
FLAGS_avx512   := -march=x86-64-v4 -mprefer-vector-width=512
FLAGS_avx512_bf16 := $(FLAGS_avx512) -mavx512bf16 -DPAIRS=1
FLAGS_amx_bf16 := $(FLAGS_avx512_bf16) -mamx-tile -mamx-bf16 -DTILES=1
FLAGS_avx2     := -march=x86-64-v3
FLAGS_portable :=
CPU_O   := $(ISAS:%=$(BUILD)/cpu/fast.%.o) $(patsubst %,$(BUILD)/cpu/%.o,plain memory cpu)

.DEFAULT_GOAL := $(if $(MPI),mpi,sd)
sd $(BUILD)/sd-mpi: $(CPU_O) $(ABOVE_O)
	$(if $(NCCL),$(error NCCL=1 goes with `make cuda` and `make emulate`))
	$(call say,link,$@)$(CC) $(CFLAGS) $(OPENMP) -o $@ $^ $(LIBS)
mpi: $(BUILD)/sd-mpi
	@cp -f $< sd && touch -t 200001010000 sd # old: the next `make` links the one without MPI again
$(BUILD)/lib/nn/ranks_mpi.o $(BUILD)/lib/nn/ranks_host.o: private BASE += $(filter -I% -D%,$(MPI_ADDS))

# The same program on the definition of each kernel, for stepping through in a debugger.
plain: ; $(MAKE) BUILD=build/plain CFLAGS='-O0 -g' ISAS= sd-plain
sd-plain: $(ABOVE_O) $(CPU_O)
	$(call say,link,$@)$(CC) $(CFLAGS) $(OPENMP) -o $@ $^ $(LIBS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,cc,$<)$(CC) $(BASE) $(CFLAGS) $(OPENMP) $(if $(STB),-isystem $(STB)) -c $< -o $@

$(patsubst %,$(BUILD)/cpu/fast.%.o,$(ISAS) emulated emulated_tiles): $(BUILD)/cpu/fast.%.o: cpu/fast.c
	@mkdir -p $(@D)
	$(call say,cc,$< ($*))$(CC) $(BASE) $(CFLAGS) $(FLAGS_$*) $(OPENMP) -DISA=$* -c $< -o $@
TABLES  := $(filter-out %_bf16,$(ISAS)) plain $(filter %_bf16,$(ISAS))
$(BUILD)/cpu/cpu.o: private BASE += -D'TABLES=$(patsubst %,X(%),$(TABLES))'

# The page of `sd report` as C: a string a line.
$(BUILD)/cli/report.html.h: cli/report.html
	@mkdir -p $(@D)
	$(call say,sed,$<)sed 's/[\\"?]/\\&/g; s/.*/"&\\n"/' $< >$@
$(BUILD)/cli/report.o: $(BUILD)/cli/report.html.h
$(BUILD)/cli/report.o: BASE += -I$(BUILD)

# Stable Diffusion v1.5's configurations as C strings: each line in quotes.
$(BUILD)/lib/io/sd15.inc: $(wildcard lib/io/sd15/*.json)
	@mkdir -p $(@D)
	@for f in $^; do \
	    echo "static const char $$(basename $$f .json)_json[] ="; \
	    sed 's/"/\\"/g; s/.*/    "&\\n"/' $$f; echo ";"; \
	done > $@
$(BUILD)/lib/io/architectures.o: $(BUILD)/lib/io/sd15.inc
$(BUILD)/lib/io/architectures.o: BASE += -I$(BUILD)/lib/io

# These need the stb headers: install the package, or say which.
$(BUILD)/lib/io/image.o $(BUILD)/lib/io/deflate.o: | stb
stb:
	@$(if $(STB),true,sh lib/io/install_stb.sh)

# ---- tests -------------------------------------------------------------------------------------------------
# A folder a room. Each .c is a program that links everything but main().
ROOMS   := house nn io phases toy cli
TESTS   := $(patsubst %.c,$(BUILD)/%,$(wildcard $(ROOMS:%=test/%/*.c)))
TESTED  := $(filter-out $(BUILD)/cli/main.o,$(ABOVE_O)) $(CPU_O)
# JOBS: so many at a time. Most of the time a test is one thread.
JOBS    ?= 2
test: sd $(TESTS)
	@JOBS=$(JOBS) sh test/run.sh $(TESTS) $(wildcard test/*/*.sh.test)
# The same programs; what is long or large asks full_size() of test/test.h, which sees FULL.
test-full:
	@echo "Full size and full length: about an hour on 2 cores, up to 14 GB of memory"
	@FULL=1 $(MAKE) --no-print-directory JOBS=1 test
$(BUILD)/test/%: test/%.c $(TESTED)
	@mkdir -p $(@D)
	$(call say,test,$<)$(CC) $(BASE) $(CFLAGS) $(OPENMP) $< $(filter %.o,$^) -o $@ $(LIBS)
# Products of bf16 by functions in place of the instructions, for any processor.
$(BUILD)/test/nn/bf16: $(BUILD)/cpu/fast.emulated.o $(BUILD)/cpu/fast.emulated_tiles.o
FLAGS_emulated := -DPAIRS=1
FLAGS_emulated_tiles := -DPAIRS=1 -DTILES=1

# -fexpensive-optimizations: with fused multiply-adds, as the program has them.
SANITIZE := -O1 -fexpensive-optimizations -g -fsanitize=address,undefined -fno-sanitize-recover=undefined \
            -fno-omit-frame-pointer
asan: ; $(MAKE) BUILD=build/asan CFLAGS='$(SANITIZE)' asan-tests
asan-tests: $(TESTS) # leaks are not asked for: die(), the way out of an error, frees nothing
	@QUICK=1 ASAN_OPTIONS=detect_leaks=0 JOBS=$(JOBS) sh test/run.sh $(TESTS)

# Another processor, emulated: 64-bit ARM, where a cross compiler and qemu-user are installed.
AARCH64_CC ?= aarch64-linux-gnu-gcc
aarch64: sd $(BUILD)/test/aarch64/differs
	+@BUILD=$(BUILD) sh test/aarch64/run.sh "$(AARCH64_CC)"

# What `make test` has no time for: signals, power failures, turned bits, hostile configurations, inputs and
# places, and the worst that each reader accepts; see the heads of test/attack/*. Needs Python, strace and,
# for full disks, root. ATTACKS=N: so many signals, and as much of the rest in proportion.
ATTACKS ?= 300
attack: sd $(BUILD)/test/attack/power $(BUILD)/test/attack/flip
	python3 test/attack/worst.py ./sd
	python3 test/attack/places.py ./sd
	python3 test/attack/power.py 10000 $(BUILD)/test/attack/power DISK 4
	$(BUILD)/test/attack/flip $$(($(ATTACKS) * 10000 / 300))
	python3 test/attack/kill.py ./sd $(ATTACKS)
	$(MAKE) BUILD=build/asan CFLAGS='$(SANITIZE)' build/asan/test/attack/sd
	python3 test/attack/config.py build/asan/test/attack/sd
	python3 test/attack/mutate.py build/asan/test/attack/sd 1800
	$(MAKE) BUILD=build/msan CC=clang ISAS= OPENMP= build/msan/test/attack/sd \
	  CFLAGS='-O1 -g -fsanitize=memory'
	python3 test/attack/mutate.py build/msan/test/attack/sd 1800
$(BUILD)/test/attack/sd: $(CPU_O) $(ABOVE_O)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(OPENMP) -o $@ $^ $(LIBS)

# Code laid out by the one version of clang-format that counts, lines of at most 110 columns: see the script.
format: ; @sh test/house/format.sh --apply
check-format: ; @sh test/house/format.sh

# This machine's peak, each network on it, and each kernel: five minutes on two quiet cores; QUICK=1 the tiny
# model alone, some seconds.
bench: $(BUILD)/test/bench/bench
	@$<

# ---- beside the reference implementations (Python) ---------------------------------------------------------
# One environment outside the tree, versions pinned; REFERENCE=DIR uses another, as it is.
REFERENCE ?= $(HOME)/.cache/sd.c-reference
PYTHON    := $(REFERENCE)/bin/python
ifeq ($(origin REFERENCE),file)
$(PYTHON): test/python/requirements.txt
	python3 -m venv $(REFERENCE)
	$(PYTHON) -m pip install -q -r test/python/requirements.txt
	@touch $@
endif
reference: sd $(PYTHON)
	$(PYTHON) test/python/reference.py compare $(if $(MODEL),--model $(MODEL))
	$(if $(MODEL),,$(PYTHON) test/python/check_pipelines.py)
	$(if $(PHOTOS),$(PYTHON) test/python/compare_fid.py $(PHOTOS))
bench-peers: sd $(PYTHON)
	$(PYTHON) test/python/bench_peers.py $(if $(MODEL),--model $(MODEL)) $(if $(SD_CPP),--sd-cpp $(SD_CPP)) \
	  $(if $(DTYPE),--dtype $(DTYPE))

# Arbitrary bytes as JSON, tokens, weights, arrays and pictures, under AddressSanitizer and UBSan; needs
# clang's libFuzzer. What die() leaves behind adds up: -fork begins a new process every so often.
# stb's JPEG decoder shifts too far on nonsense, harmlessly: see test/fuzz/image.c.
FUZZ_SECONDS ?= 300
FUZZ_FLAGS   := -fork=1 -ignore_timeouts=0 -ignore_ooms=0 -max_total_time=$(FUZZ_SECONDS) -timeout=60 \
                -rss_limit_mb=4096 -detect_leaks=0 -verbosity=0 -artifact_prefix=$(BUILD)/fuzz/
FUZZERS      := json tokenizer safetensors npz image png
FUZZ_LIBS    := lib/base.c $(addprefix lib/io/,deflate.c file_kind.c image.c json.c) \
                $(addprefix lib/io/,safetensors.c tokenizer.c unicode.c)
FUZZ_OWN_safetensors := lib/io/safetensors.c # these include the file that they test
FUZZ_OWN_image       := lib/io/image.c
FUZZ_OWN_png         := lib/io/image.c
FUZZ_image   := -fno-sanitize=shift,signed-integer-overflow
FUZZ_png     := $(FUZZ_image)
FUZZERS_WHOLE := captions checkpoint lora trace vocabulary # these link the whole program
fuzz: $(FUZZERS:%=fuzz-%) $(FUZZERS_WHOLE:%=fuzz-%)
$(BUILD)/test/fuzz/%: private override CFLAGS += -fsanitize=fuzzer
$(FUZZERS_WHOLE:%=fuzz-%): fuzz-%: | stb
	@mkdir -p $(BUILD)/fuzz/$* && cp test/fuzz/$*/* $(BUILD)/fuzz/$*
	$(MAKE) BUILD=build/fuzzed ISAS= OPENMP= CC=clang build/fuzzed/test/fuzz/$* CFLAGS='-O1 -g \
	  -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -Wno-unknown-pragmas'
	ASAN_OPTIONS=detect_leaks=0 build/fuzzed/test/fuzz/$* $(FUZZ_FLAGS) $(BUILD)/fuzz/$*
fuzz-%: | stb
	@mkdir -p $(BUILD)/fuzz/$* && cp test/fixtures/io/* $(BUILD)/fuzz/$*
	clang -std=c17 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined $(FUZZ_$*) -I. \
	  $(if $(STB),-isystem $(STB)) test/fuzz/$*.c $(filter-out $(FUZZ_OWN_$*),$(FUZZ_LIBS)) \
	  -o $(BUILD)/fuzz_$* -lm
	ASAN_OPTIONS=detect_leaks=0 $(BUILD)/fuzz_$* $(FUZZ_FLAGS) $(BUILD)/fuzz/$*

FIGURE3 := A child in a pink dress is climbing up a set of stairs in an entryway
# In the environment, as it is typed: a dollar sign, a quote or a backtick in a caption is one.
demo: override export FIGURE3 := $(value FIGURE3)
demo: sd
	@sh weights/demo.sh

# The whole paper: on the toy world, or on MODEL=DIR DATA=DIR INCEPTION=FILE; see weights/paper.sh.
paper: $(if $(MPI),mpi,sd)
	@sh weights/paper.sh
paper-from-scratch: sd
	@FROM_SCRATCH=1 sh weights/paper.sh

# An exercise of doc/COURSE.md: a copy of one source file, with a mistake, built against the other objects and
# checked.
exercise: override export N := $(value N)
exercise: $(ABOVE_O) $(CPU_O) $(BUILD)/doc/exercises/check.o
	@CC="$(CC)" FLAGS="$(BASE) $(CFLAGS) $(OPENMP)" \
	  OBJECTS="$(filter-out $(BUILD)/cli/main.o,$(ABOVE_O)) $(CPU_O)" \
	  MAKE="$(MAKE)" CHECK=$(BUILD)/doc/exercises/check.o MAIN=$(BUILD)/cli/main.o sh doc/exercises/run.sh "$$N"

# build/sd.html: the program in a page, by emscripten; doc/page/ has the page, cli/web.c what it calls. The
# kernels come twice, with SIMD and without. EMCC=... chooses another compiler.
EMCC  ?= emcc
web: sd
	@command -v $(EMCC) >/dev/null || { echo "needs emscripten: sudo apt-get install emscripten"; exit 1; }
	@$(MAKE) BUILD=build/web CC=$(EMCC) CFLAGS=-O3 OPENMP= MPI= ISAS=portable build/sd.html
WEB_O := $(filter-out $(BUILD)/cli/%,$(ABOVE_O)) $(patsubst %,$(BUILD)/cpu/%.o,plain memory cpu) \
           $(patsubst %,$(BUILD)/cli/%.o,captions film web)
$(BUILD)/cpu/fast.simd.o: cpu/fast.c
	@mkdir -p $(@D)
	$(call say,cc,$< (simd))$(CC) $(BASE) $(CFLAGS) -msimd128 -DISA=portable -c $< -o $@
$(BUILD)/sd-%.js: $(WEB_O) $(BUILD)/cpu/fast.%.o
	$(call say,link,$@)$(CC) -O1 -o $@ $^ -sMODULARIZE=1 -sEXPORT_NAME=SD -sENVIRONMENT=worker,node \
	  -sALLOW_MEMORY_GROWTH=1 -sINITIAL_MEMORY=256MB -sTOTAL_STACK=2MB -sEXPORTED_RUNTIME_METHODS=ccall \
	  -sEXPORTED_FUNCTIONS=_malloc,_free
# What FID is measured against: 2,000 true scenes that no training has seen.
$(BUILD)/reference.npz: weights/tiny-inception.safetensors weights/toy/scenes.c
	@mkdir -p $(@D)
	./sd scenes $(BUILD)/true -n 2000 --split test --seed 1000 --force -q
	./sd fid stats $(BUILD)/true/Images -o $@ -q --weights $<
build/sd.html: $(BUILD)/sd-simd.js $(BUILD)/sd-portable.js $(BUILD)/reference.npz $(wildcard doc/page/*) \
  $(wildcard weights/tiny/*/* weights/tiny-lcm/unet/* weights/*.safetensors)
	$(call say,page,$@)sh doc/page/build.sh $(BUILD) >$@.part && mv $@.part $@

clean:
	rm -rf $(BUILD) sd sd-plain sd-emulate

help:
	@echo "make            ./sd for this machine's processor"
	@echo "make demo       draw the paper's Figure 3 with the tiny model"
	@echo "make paper      the paper on the toy world: pictures, FID, speed, report/index.html"
	@echo "                make paper MODEL=DIR DATA=DIR INCEPTION=FILE: on real weights (see weights/paper.sh)"
	@echo "make paper-from-scratch  train everything tiny from nothing, then the same"
	@echo "make web        build/sd.html: the program in a page, to open in a browser (needs emscripten)"
	@echo "make exercise N=1  check an exercise of doc/COURSE.md"
	@echo "make test       tests that need neither Python nor a GPU"
	@echo "make test-full  the same at full size and full length: about an hour, up to 14 GB of memory"
	@echo "make reference  compare live with PyTorch, diffusers, ... (MODEL=DIR: on a model of yours;"
	@echo "                PHOTOS=DIR, a folder of 600 JPEGs: sd fid beside pytorch-fid, too)"
	@echo "make bench      this machine's peak, and the share of it that each kernel reaches (QUICK=1: briefly)"
	@echo "make bench-peers  time the same work in sd, PyTorch and OpenVINO"
	@echo "make MPI=1      ./sd for many processes: mpirun -n N ./sd ... (doc/SCALE.md); make cuda NCCL=1"
	@echo "make plain      ./sd-plain: every kernel as its definition, for a debugger"
	@echo "make asan       the quick tests under AddressSanitizer and UBSan"
	@echo "make aarch64    some tests on an emulated 64-bit ARM processor (cross compiler, qemu-user)"
	@echo "make attack     signals, power failures, hostile files and places: an hour or two"
	@echo "make fuzz       libFuzzer on every reader of files, FUZZ_SECONDS=300 each (needs clang)"
	@echo "make cuda       ./sd for an NVIDIA GPU (ARCH=sm_90, PRECISION=f32|bf16|f16)"
	@echo "make kernel     K=conv STEP=2: one step of a ladder of kernels, run and counted; on a GPU timed"
	@echo "make emulate    ./sd-emulate: the CUDA kernels, run on the processor; emulate-check, emulate-count"
	@echo "make test-cuda  every CUDA kernel without a GPU; test-cuda-full: all schedules and whole pictures"
	@echo "make cuda-report  what the compiler knows of each kernel"
	@echo "make gpu-check  everything once on a real GPU"
	@echo "make format     lay the code out as .clang-format says; check-format: is it?"
	@echo "make clean      remove what was built"


.PHONY: attack
.PHONY: mpi web
.PHONY: bench aarch64
.PHONY: demo paper paper-from-scratch exercise reference bench-peers plain stb test test-full asan asan-tests
.PHONY: format check-format fuzz clean help
-include $(wildcard cuda/build.mk)
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
