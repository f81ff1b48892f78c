# build.mk: the rules of cuda/, included by the Makefile. The objects above lib/nn/kernels.h are the same ones
# that the processor's backend is linked with.
#   make cuda            ./sd for an NVIDIA GPU (ARCH=sm_90, PRECISION=f32|bf16|f16; PTX=80: PTX alone, shared
#                        runtime)
#   make emulate         ./sd-emulate: the CUDA kernels on the processor (DEBUG=1: for a debugger)
#                        NCCL=1, of both: many ranks (doc/SCALE.md)
#   make emulate-check   ./sd-emulate-check: every load and store of a kernel is checked
#   make emulate-count   ./sd-emulate-count: bank conflicts and coalescing, with a page, emulate-count.html
#   make kernel K=conv STEP=2   one step of a ladder, counted; on a GPU timed
#   make test-cuda, test-cuda-full, cuda-report, gpu-check (QUICK=1 STB=DIR: within 5 minutes)
NVCC      ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_CXX  ?= g++
PRECISION ?= f32
STORAGE_f32 := F32
STORAGE_bf16 := BF16
STORAGE_f16 := F16
STORAGE   := $(or $(STORAGE_$(PRECISION)),$(error PRECISION is $(PRECISION); f32, bf16 and f16 are known))
KERNELS   := memory gemm conv attention norm pointwise loss optim $(if $(NCCL),ranks_nccl)
CUDA_H    := $(wildcard cuda/*.h) lib/base.h lib/nn/kernels.h
WITH      := $(if $(MPI),-$(if $(NCCL),nccl,mpi))

# ---- with nvcc ---------------------------------------------------------------------------------------------
# The architecture: what was asked for, else the machine's GPU, else the oldest that has all the instructions.
GPU_HERE  := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
GPU_ARCH  := $(or $(filter sm_%,$(ARCH)),$(patsubst %,sm_%,$(subst .,,$(GPU_HERE))),sm_80)
NVCCFLAGS := -std=c++17 -O3 -lineinfo -I. -DSTORAGE=$(STORAGE) --compiler-options -Wall,-Wextra
ifdef PTX
NVCCFLAGS += -gencode arch=compute_$(PTX),code=compute_$(PTX) -no-compress -DOWN_ALLOCATIONS
NVCCLINK  := -cudart shared
NVCC_DIR  := $(BUILD)/nvcc-ptx$(PTX)-$(PRECISION)
else
NVCCFLAGS += -arch=$(GPU_ARCH)
NVCC_DIR  := $(BUILD)/nvcc-$(GPU_ARCH)-$(PRECISION)
NVCCLINK  := $(if $(NCCL),-lnccl)
endif
NVCC_O    := $(KERNELS:%=$(NVCC_DIR)/%.o)
$(NVCC_DIR)/%.o: cuda/%.cu $(CUDA_H)
	@mkdir -p $(@D)
	$(if $(NVCC),,$(error nvcc was not found; `make emulate` runs the kernels on the processor))
	$(NVCC) $(NVCCFLAGS) -c $< -o $@
CUDA_SD   ?= ./sd
$(NVCC_DIR)/sd$(WITH): $(ABOVE_O) $(NVCC_O)
	$(NVCC) $(NVCCFLAGS) $(NVCCLINK) $(OPENMP:%=-Xcompiler %) $^ -o $@ $(filter-out -Wl%,$(LIBS))
cuda: $(NVCC_DIR)/sd$(WITH)
	@cp -f $< $(CUDA_SD) && touch -t 200001010000 $(CUDA_SD) # old: the next `make` links the processor's again
	@echo "$(CUDA_SD) for $(if $(PTX),compute_$(PTX),$(GPU_ARCH)), activations in $(PRECISION)"

# ---- with g++: the emulator --------------------------------------------------------------------------------
# launch.sed makes a call of each <<<...>>>; the compiler reads the result from a pipe, with the file's own
# lines.
EMU_FLAGS  := -std=c++17 -gdwarf-4 -Wall -Wextra -Wno-unknown-pragmas -fno-extern-tls-init -I. \
              -DSTORAGE=$(STORAGE)
ifneq ($(shell $(CUDA_CXX) --version | grep -c clang),0)
EMU_FLAGS  := $(filter-out -fno-extern-tls-init,$(EMU_FLAGS))
BOUNDS     := -fsanitize=array-bounds
else
BOUNDS     := -fsanitize=bounds-strict
endif
EMULATOR   := emulate warp check page
RUNTIME_O  := $(EMULATOR:%=$(BUILD)/emulator/%.o)
$(BUILD)/emulator/%.o: cuda/emulate/%.cc cuda/emulate/emulate.h cuda/emulate/inside.h
	@mkdir -p $(@D)
	$(CUDA_CXX) -std=c++17 -O2 -g -Wall -Wextra -c $< -o $@
$(BUILD)/emulator/emulate_count.o: cuda/emulate/emulate.cc cuda/emulate/emulate.h cuda/emulate/inside.h
	@mkdir -p $(@D)
	$(CUDA_CXX) -std=c++17 -O2 -g -Wall -Wextra -DEMU_COUNT_DEFAULT=1 -c $< -o $@

# Headers with launches in them, for the emulator
LAUNCH_H   := $(patsubst cuda/%,$(BUILD)/emulator/launch/%,$(shell grep -l '<<<' cuda/*.h))
.SECONDARY: $(LAUNCH_H)
$(BUILD)/emulator/launch/%.h: cuda/%.h cuda/emulate/launch.sed
	@mkdir -p $(@D)
	@(echo '#line 1 "$<"'; sed -f cuda/emulate/launch.sed $<) >$@
# $(call emulate_cc,flags): compiles $< for the emulator
emulate_cc = @mkdir -p $(@D); echo "  emulate $<"; \
    (echo '\#line 1 "$<"'; sed -f cuda/emulate/launch.sed $<) | \
    $(CUDA_CXX) $(EMU_FLAGS) -iquote $(BUILD)/emulator/launch -iquote $(<D) $(1) \
    -include cuda/emulate/emulate.h -x c++ -c - -o $@
EMU_DIR    := $(BUILD)/emulate$(if $(DEBUG),-debug)-$(PRECISION)
CHECK_DIR  := $(BUILD)/check-$(PRECISION)
EMU_O      := $(KERNELS:%=$(EMU_DIR)/%.o)
CHECK_O    := $(KERNELS:%=$(CHECK_DIR)/%.o)
EMU_OPT    := $(if $(DEBUG),-O0,-O2)
$(EMU_DIR)/ranks_nccl.o: cuda/emulate/nccl.h lib/nn/ranks.h
$(EMU_DIR)/ranks_nccl.o: private EMU_FLAGS += -Icuda/emulate $(filter -I% -D%,$(MPI_ADDS))
CHECK_OPT  := -O1 -fsanitize=thread $(BOUNDS) -DOWN_ALLOCATIONS
$(EMU_DIR)/%.o: cuda/%.cu $(CUDA_H) cuda/emulate/launch.sed $(LAUNCH_H)
	$(call emulate_cc,$(EMU_OPT))
$(EMU_DIR)/test/%.o: test/cuda/%.cu $(CUDA_H) cuda/emulate/launch.sed test/cuda/cuda.h $(LAUNCH_H)
	$(call emulate_cc,$(EMU_OPT))
$(CHECK_DIR)/%.o: cuda/%.cu $(CUDA_H) cuda/emulate/launch.sed $(LAUNCH_H)
	$(call emulate_cc,$(CHECK_OPT))
$(CHECK_DIR)/test/%.o: test/cuda/%.cu $(CUDA_H) cuda/emulate/launch.sed test/cuda/cuda.h $(LAUNCH_H)
	$(call emulate_cc,$(CHECK_OPT))

$(EMU_DIR)/sd$(WITH): $(ABOVE_O) $(EMU_O) $(RUNTIME_O)
	$(CUDA_CXX) $(OPENMP) $^ -o $@ $(LIBS) -lpthread
$(CHECK_DIR)/sd: $(ABOVE_O) $(CHECK_O) $(RUNTIME_O)
	$(CUDA_CXX) $(OPENMP) $^ -o $@ -lm -lpthread
emulate: $(EMU_DIR)/sd$(WITH) ; cp $< sd-emulate
emulate-check: $(CHECK_DIR)/sd ; cp $< sd-emulate-check
emulate-count: $(ABOVE_O) $(CHECK_O) $(BUILD)/emulator/emulate_count.o $(filter-out %/emulate.o,$(RUNTIME_O))
	$(CUDA_CXX) $(OPENMP) $^ -o sd-emulate-count -lm -lpthread

# ---- tests -------------------------------------------------------------------------------------------------
# What test/nn/kernels.c needs beside the kernels. Where the bounds of an allocation are checked, operands
# fill theirs.
CUDA_BELOW := $(patsubst %,$(BUILD)/lib/%.o,base io/deflate io/image io/safetensors io/json io/file_kind)
CUDA_TESTS := $(patsubst test/cuda/%.cu,%,$(wildcard test/cuda/*.cu))
$(BUILD)/cuda-test/kernels.o $(BUILD)/cuda-test/kernels_bounds.o: test/nn/kernels.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(if $(findstring bounds,$@),-DNO_GUARD) -c $< -o $@
$(EMU_DIR)/kernels: $(BUILD)/cuda-test/kernels.o $(BUILD)/cpu/plain.o $(CUDA_BELOW) $(EMU_O) $(RUNTIME_O)
	$(CUDA_CXX) $(OPENMP) $^ -o $@ -lm -lpthread
$(CHECK_DIR)/kernels: $(BUILD)/cuda-test/kernels_bounds.o $(BUILD)/cpu/plain.o $(CUDA_BELOW) \
                      $(CHECK_O) $(RUNTIME_O)
	$(CUDA_CXX) $(OPENMP) $^ -o $@ -lm -lpthread
$(CUDA_TESTS:%=$(EMU_DIR)/%): $(EMU_DIR)/%: $(EMU_DIR)/test/%.o $(EMU_O) $(RUNTIME_O) $(BUILD)/lib/base.o
	$(CUDA_CXX) $(OPENMP) $^ -o $@ -lm -lpthread
$(CUDA_TESTS:%=$(CHECK_DIR)/%): $(CHECK_DIR)/%: $(CHECK_DIR)/test/%.o \
                                $(CHECK_O) $(RUNTIME_O) $(BUILD)/lib/base.o
	$(CUDA_CXX) $(OPENMP) $^ -o $@ -lm -lpthread

# The tests of whole networks, as they stand, with the emulated kernels below them.
NETWORK_TESTS := networks gradients lcm lora fid
NETWORKS_O    := $(filter-out %/main.o,$(ABOVE_O))
$(addprefix $(EMU_DIR)/,repeated $(NETWORK_TESTS)): \
    $(EMU_DIR)/%: $(BUILD)/test/phases/%.o $(NETWORKS_O) $(EMU_O) $(RUNTIME_O)
	$(CUDA_CXX) $(OPENMP) $^ -o $@ -lm -lpthread

# A picture and a training step at full size, to be counted: see report.sh.
$(CHECK_DIR)/bounds: $(BUILD)/cuda-test/bounds.o $(NETWORKS_O) $(CHECK_O) $(RUNTIME_O)
	$(CUDA_CXX) $(OPENMP) $^ -o $@ -lm -lpthread
$(BUILD)/cuda-test/bounds.o: test/cuda/bounds.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(OPENMP) -Wno-unused-parameter -c $< -o $@

# The same tests built by nvcc, as PTX alone, for a stand-in runtime: optimised and not.
PTX_FLAGS  := -std=c++17 -I. -DSTORAGE=$(STORAGE) -DOWN_ALLOCATIONS \
              -gencode arch=compute_80,code=compute_80 -no-compress
PTX_DIR    := $(BUILD)/ptx-$(PRECISION)
define PTX_RULES # name, flags
$(PTX_DIR)-$(1)/%.o: cuda/%.cu $(CUDA_H)
	@mkdir -p $$(@D)
	@echo "  nvcc $(2) $$<"; $(NVCC) $(PTX_FLAGS) $(2) -c $$< -o $$@
$(PTX_DIR)-$(1)/test/%.o: test/cuda/%.cu $(CUDA_H) test/cuda/cuda.h
	@mkdir -p $$(@D)
	@echo "  nvcc $(2) $$<"; $(NVCC) $(PTX_FLAGS) $(2) -c $$< -o $$@
$(PTX_DIR)-$(1)/kernels: $(BUILD)/cuda-test/kernels_bounds.o $(BUILD)/cpu/plain.o $(CUDA_BELOW) \
                         $(KERNELS:%=$(PTX_DIR)-$(1)/%.o)
	$(NVCC) -cudart shared $(OPENMP:%=-Xcompiler %) $$^ -o $$@ -lm
$(CUDA_TESTS:%=$(PTX_DIR)-$(1)/%): $(PTX_DIR)-$(1)/%: $(PTX_DIR)-$(1)/test/%.o \
                                   $(KERNELS:%=$(PTX_DIR)-$(1)/%.o) $(BUILD)/lib/base.o
	$(NVCC) -cudart shared $(OPENMP:%=-Xcompiler %) $$^ -o $$@ -lm
$(PTX_DIR)-$(1)/sd: $(ABOVE_O) $(KERNELS:%=$(PTX_DIR)-$(1)/%.o)
	$(NVCC) -cudart shared $(OPENMP:%=-Xcompiler %) $$^ -o $$@ -lm
endef
$(eval $(call PTX_RULES,O3,-O3 -lineinfo))
$(eval $(call PTX_RULES,G,-G))
.PHONY: emulate-16 cuda emulate emulate-check emulate-count test-cuda test-cuda-full cuda-report gpu-check

# ---- test-cuda: every kernel, two orders of threads, one order of warps ------------------------------------
# PTXRUN: where the stand-in runtime's sources are (its build.sh); it is built into $(BUILD).
PTXRUN     ?= ../shared/ptxrun
PTXRUN_DIR := $(abspath $(BUILD))/ptxrun
HAVE_PTX   := $(and $(NVCC),$(wildcard $(PTXRUN)/build.sh))
CUDA_LOG   := $(BUILD)/cuda-test/result
$(PTXRUN_DIR)/lib: ; @mkdir -p $(PTXRUN_DIR); $(PTXRUN)/build.sh $(PTXRUN_DIR) >/dev/null
ONE := sh test/run.sh --one
LOG  = tee -a $(CUDA_LOG)
one  = @$(ONE) $(1) | $(LOG)
UNDER_PTXRUN = env LD_LIBRARY_PATH=$(PTXRUN_DIR)/lib
EMU_TESTS  := kernels wrap gemm conv attention memory
PICTURE    := $(BUILD)/test/cuda/picture
SMALL_PICTURE   := -p 'a dog' -W 64 -H 64 --steps 2
SMALLER_PICTURE := -p 'a dog' -W 64 -H 64 --steps 1
# Whole pictures and memory in 16 bits. PyTorch's own latents in bf16 and fp16 differ from fp32's by 5.5 % and
# 0.67 % (root mean square, this picture); ours may by 1.5 times as much.
SIXTEEN    := bf16 f16
LIMIT_bf16 := 0.083
LIMIT_f16  := 0.010
emulate-16: $(addprefix $(EMU_DIR)/,sd memory gemm repeated)
test-cuda: sd $(PICTURE) $(addprefix $(EMU_DIR)/,sd fid half errors repeated $(EMU_TESTS)) \
           $(addprefix $(CHECK_DIR)/,bugs $(EMU_TESTS)) \
           $(if $(HAVE_PTX),$(PTXRUN_DIR)/lib $(addprefix $(PTX_DIR)-O3/,errors sd $(EMU_TESTS)))
	@rm -f $(CUDA_LOG)
	$(call one,'conversions' $(EMU_DIR)/half)
	$(call one,'wrappers emulated' $(EMU_DIR)/wrap)
	$(call one,'wrappers checked' env EMU_SEED=1 $(CHECK_DIR)/wrap)
	$(call one,'planted mistakes' sh test/cuda/bugs.sh $(CHECK_DIR)/bugs 0 1)
	$(call one,'messages' sh test/cuda/errors.sh $(EMU_DIR)/kernels $(EMU_DIR)/errors)
	$(call one,'gemm emulated' env EMU_SEED=2 $(EMU_DIR)/gemm)
	$(call one,'gemm checked' $(CHECK_DIR)/gemm)
	@for t in conv attention memory; do \
	    $(ONE) "$$t emulated" env EMU_SEED=2 EMU_ASYNC=1 $(EMU_DIR)/$$t | $(LOG); \
	    $(ONE) "$$t checked" $(CHECK_DIR)/$$t | $(LOG); done
	$(call one,'bounds by hand' sh test/cuda/bounds.sh)
	$(call one,'bank conflicts' sh test/cuda/count.sh $(addprefix $(CHECK_DIR)/,bugs gemm conv attention))
	$(call one,'kernels emulated' env EMU_SEED=3 $(EMU_DIR)/kernels)
	$(call one,'kernels checked' $(CHECK_DIR)/kernels)
	$(call one,'passes repeated as graphs' env EMU_ASYNC=1 $(EMU_DIR)/repeated)
	$(call one,'a small picture emulated' sh test/cuda/model.sh ./sd $(EMU_DIR)/sd $(PICTURE) $(SMALL_PICTURE))
	@for p in $(SIXTEEN); do $(MAKE) -s PRECISION=$$p emulate-16 || exit; \
	    for t in memory gemm $$([ $$p = f16 ] || echo repeated); do \
	        $(ONE) "$$t in $$p" $(BUILD)/emulate-$$p/$$t | $(LOG); done; \
	    $(ONE) "a small picture in $$p" sh test/cuda/half_picture.sh ./sd $(BUILD)/emulate-$$p/sd $(PICTURE) \
	      $$([ $$p = f16 ] && echo $(LIMIT_f16) || echo $(LIMIT_bf16)) $(SMALL_PICTURE) | $(LOG); done
	$(call one,'inception emulated' $(EMU_DIR)/fid)
	$(call one,'ranks emulated' sh test/cuda/ranks.sh ./sd $(EMU_DIR)/sd-nccl)
ifneq ($(HAVE_PTX),)
	$(call one,'messages by nvcc' sh test/cuda/errors.sh - $(PTX_DIR)-O3/errors $(PTXRUN_DIR)/lib)
	$(call one,'wrappers by nvcc' $(UNDER_PTXRUN) $(PTX_DIR)-O3/wrap)
	@for t in gemm conv attention; do $(ONE) "$$t by nvcc" $(UNDER_PTXRUN) $(PTX_DIR)-O3/$$t | $(LOG); done
	$(call one,'kernels by nvcc' $(UNDER_PTXRUN) $(PTX_DIR)-O3/kernels)
	$(call one,'a smaller picture by nvcc' $(UNDER_PTXRUN) \
	  sh test/cuda/model.sh ./sd $(PTX_DIR)-O3/sd $(PICTURE) $(SMALLER_PICTURE))
else
	@echo "kernels by nvcc: 0 passed, 0 failed, 7 skipped (nvcc or $(PTXRUN) is not here)" | $(LOG)
endif
	@sh test/run.sh --sum $(CUDA_LOG)

cuda-report:
	$(if $(NVCC),,$(error cuda-report: nvcc was not found))
	$(if $(ARCHS),,@$(MAKE) -s PRECISION=bf16 $(BUILD)/check-bf16/bounds)
	@BOUNDS=$(if $(ARCHS),,$(BUILD)/check-bf16/bounds) sh cuda/report.sh $(NVCC) \
	  $(filter-out cuda/memory.cu,$(KERNELS:%=cuda/%.cu)) cuda/memory.cu

# ---- one step of a ladder, and exercises of doc/COURSE.md --------------------------------------------------
# make kernel K=gemm STEP=2: counted, with a page; on a GPU timed at Stable Diffusion's size. In bf16.
LADDER_gemm      := naive tiled blocked tensor
LADDER_conv      := naive blocked tensor
LADDER_attention := naive blocked tensor
SMALL_gemm       := gemm m=128 n=128 k=128 b_transposed
LARGE_gemm       := gemm m=8192 n=320 k=320 b_transposed
SMALL_conv       := conv2d n=1 h=16 w=16 c=32 oh=16 ow=16 oc=64 kh=3 kw=3 stride=1 top=1 left=1
LARGE_conv       := conv2d n=2 h=64 w=64 c=320 oh=64 ow=64 oc=320 kh=3 kw=3 stride=1 top=1 left=1
SMALL_attention  := attention n=1 heads=2 tq=128 tk=128 d=40
LARGE_attention  := attention n=2 heads=8 tq=4096 tk=4096 d=40
upper = $(shell echo $(1) | tr a-z A-Z)
NO_STEP = make kernel K=gemm STEP=2: K: gemm, conv, attention; STEP$(if $(LADDER_$(K)), of: $(LADDER_$(K)))
STEP_NAME = $(or $(and $(filter 1 2 3 4,$(STEP)),$(word $(STEP),$(LADDER_$(K)))),$(error $(NO_STEP)))
ON_GPU  = $(BUILD)/nvcc-$(GPU_ARCH)-bf16/bench
kernel:
	@echo "$(K), step $(STEP): $(STEP_NAME)"
	@$(MAKE) -s PRECISION=bf16 $(BUILD)/check-bf16/bench $(if $(GPU_HERE),$(ON_GPU))
	@export SD_$(call upper,$(K))=$(STEP_NAME); echo "1 $(SMALL_$(K))" | \
	    EMU_COUNT=1 EMU_PAGE=kernel.html $(BUILD)/check-bf16/bench - 2>&1 | grep -v GFLOP; \
	$(if $(GPU_HERE),echo "1 $(LARGE_$(K))" | $(ON_GPU) -,echo "no GPU is here: not timed")
# Of a copy of gemm.cu, or of a header of it, in DIR.
with_launches = (echo "\#line 1 \"$(1)\""; sed -f cuda/emulate/launch.sed $(1))
kernel-exercise: $(CHECK_DIR)/gemm
	@mkdir -p $(DIR)/launch
	@for h in $(wildcard $(DIR)/*.h); do $(call with_launches,$$h) >$(DIR)/launch/$$(basename $$h); done
	@$(call with_launches,$(firstword $(wildcard $(DIR)/gemm.cu) cuda/gemm.cu)) | \
	    $(CUDA_CXX) $(EMU_FLAGS) $(CHECK_OPT) -iquote $(DIR)/launch -iquote $(BUILD)/emulator/launch \
	    -iquote cuda -include cuda/emulate/emulate.h -x c++ -c - -o $(DIR)/gemm.o
	@$(CUDA_CXX) $(OPENMP) $(CHECK_DIR)/test/gemm.o $(DIR)/gemm.o $(filter-out %/gemm.o,$(CHECK_O)) \
	    $(RUNTIME_O) $(BUILD)/lib/base.o -o $(DIR)/gemm -lm -lpthread
	@if { $(DIR)/gemm >$(DIR)/log || { grep -v ^ok $(DIR)/log; false; }; } && \
	    EMU_PAGE=$(DIR)/page.html sh test/cuda/count.sh $(DIR)/gemm; \
	    then echo "Exercise $(N): right."; else echo "Exercise $(N): not yet."; exit 1; fi
.PHONY: kernel kernel-exercise

# ---- with a GPU --------------------------------------------------------------------------------------------
CUDA_HOME  := $(dir $(NVCC))..
CUBLAS_AT  := $(CUDA_HOME)/lib64/libcublas.so $(CUDA_HOME)/targets/*/lib/libcublas.so
CUBLAS     := $(if $(NVCC),$(wildcard $(CUBLAS_AT)))
$(NVCC_DIR)/test/%.o: test/cuda/%.cu $(CUDA_H) test/cuda/cuda.h
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(if $(CUBLAS),-DHAVE_CUBLAS) -c $< -o $@
$(NVCC_DIR)/kernels: $(BUILD)/cuda-test/kernels.o $(BUILD)/cpu/plain.o $(CUDA_BELOW) $(NVCC_O)
	$(NVCC) $(NVCCFLAGS) $(NVCCLINK) $(OPENMP:%=-Xcompiler %) $^ -o $@ -lm
$(addprefix $(NVCC_DIR)/,repeated $(NETWORK_TESTS)): \
    $(NVCC_DIR)/%: $(BUILD)/test/phases/%.o $(NETWORKS_O) $(NVCC_O)
	$(NVCC) $(NVCCFLAGS) $(NVCCLINK) $(OPENMP:%=-Xcompiler %) $^ -o $@ -lm
$(CUDA_TESTS:%=$(NVCC_DIR)/%): $(NVCC_DIR)/%: $(NVCC_DIR)/test/%.o $(NVCC_O) $(BUILD)/lib/base.o
	$(NVCC) $(NVCCFLAGS) $(NVCCLINK) $(OPENMP:%=-Xcompiler %) $^ -o $@ $(if $(CUBLAS),-lcublas) -lm
# Whole networks are compared in fp32 alone: their fixtures' tolerances are fp32's.
gpu-tests: $(addprefix $(NVCC_DIR)/,kernels wrap gemm conv attention memory bench sd repeated \
                                    $(if $(QUICK),,$(if $(filter f32,$(PRECISION)),$(NETWORK_TESTS))))
print-gpu-dir: ; @echo $(NVCC_DIR)
gpu-check: ; @QUICK=$(QUICK) sh cuda/gpu_check.sh "$(MAKE)"
.PHONY: gpu-tests print-gpu-dir

# ---- test-cuda-full ----------------------------------------------------------------------------------------
# 20 orders of threads, three of warps, both builds of nvcc, statements deleted in turn, whole networks and
# training steps emulated, 16-bit activations, another compiler, every architecture.
CLANG      := $(BUILD)/clang
CUDA_ARCHS := $(if $(NVCC),$(filter-out sm_75,$(shell $(NVCC) --list-gpu-code)))
SEEDS      := 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20
test-cuda-full: test-cuda $(NETWORK_TESTS:%=$(EMU_DIR)/%) $(CHECK_DIR)/bench \
                $(if $(HAVE_PTX),$(EMU_TESTS:%=$(PTX_DIR)-G/%) $(PTX_DIR)-G/sd)
	$(call one,'the demo emulated' sh test/cuda/model.sh ./sd $(EMU_DIR)/sd $(PICTURE))
	@for t in $(NETWORK_TESTS); do $(ONE) "$$t emulated" $(EMU_DIR)/$$t | $(LOG); done
	$(call one,'ranks in all trainings' env FULL=1 sh test/cuda/ranks.sh ./sd $(EMU_DIR)/sd-nccl)
	$(call one,'full-size blocks emulated' env REDUCED=1 $(EMU_DIR)/networks)
	@for p in bf16 f16; do $(MAKE) -s PRECISION=$$p $(BUILD)/emulate-$$p/kernels || exit 1; \
	    $(ONE) "kernels in $$p" $(BUILD)/emulate-$$p/kernels | $(LOG); done
	$(call one,'planted mistakes in 20 orders' sh test/cuda/bugs.sh $(CHECK_DIR)/bugs 0 $(SEEDS))
	@for seed in $(SEEDS); do for t in $(EMU_TESTS); do \
	    $(ONE) "$$t checked, order $$seed" env EMU_SEED=$$seed $(CHECK_DIR)/$$t | $(LOG); \
	    done; done
	@$(MAKE) -s DEBUG=1 $(BUILD)/emulate-debug-$(PRECISION)/gemm $(BUILD)/emulate-debug-$(PRECISION)/sd
	$(call one,'debugger' sh test/cuda/gdb.sh $(addprefix $(BUILD)/emulate-debug-$(PRECISION)/,gemm sd))
	$(call one,'bounds counted' sh test/cuda/bounds.sh $(CHECK_DIR)/bench)
	$(call one,'exercises in kernels' sh test/cuda/exercise.sh "$(MAKE)")
	$(call one,'synchronisation deleted' sh test/cuda/mutate.sh sync $(abspath $(BUILD))/mutate)
	@command -v clang++ >/dev/null || exit 0; \
	$(MAKE) -s CUDA_CXX=clang++ BUILD=$(CLANG) $(foreach d,emulate check,$(EMU_TESTS:%=$(CLANG)/$(d)-f32/%)) \
	    $(CLANG)/check-f32/bugs || exit 1; \
	for d in emulate check; do for t in $(EMU_TESTS); do \
	    $(ONE) "clang++: $$t, $$d" $(CLANG)/$$d-f32/$$t | $(LOG); done; done; \
	$(ONE) 'clang++: planted mistakes' sh test/cuda/bugs.sh $(CLANG)/check-f32/bugs 0 1 | $(LOG)
ifneq ($(NVCC),)
	$(call one,'every architecture' sh test/cuda/static.sh "$(MAKE)" $(CUDA_ARCHS))
endif
ifneq ($(HAVE_PTX),)
	@for order in 0 1 2; do for g in O3 G; do for t in $(EMU_TESTS); do \
	    $(ONE) "$$t by nvcc -$$g, order $$order" \
	    $(UNDER_PTXRUN) PTXRUN_ORDER=$$order $(PTX_DIR)-$$g/$$t | $(LOG); done; done; done
	@for g in O3 G; do $(ONE) "a small picture by nvcc -$$g" $(UNDER_PTXRUN) PTXRUN_ORDER=3 \
	    sh test/cuda/model.sh ./sd $(PTX_DIR)-$$g/sd $(PICTURE) $(SMALL_PICTURE) | $(LOG); done
	$(call one,'mistakes in ptx.h' env NVCC=$(NVCC) PTXRUN_LIB=$(PTXRUN_DIR)/lib \
	  sh test/cuda/mutate.sh ptx $(abspath $(BUILD))/mutate)
endif
	@sh test/run.sh --sum $(CUDA_LOG)
