// commands.h: the commands of `sd`, a function each. argv[1] is the first option. They return the exit
// status; errors end the program through die() with status 1, or die_usage() with status 2. A command runs
// once: memory and files that are in use until its end are not given back; they go with the process.
#ifndef COMMANDS_H
#define COMMANDS_H

int command_sample(int argc, char **argv); // sample.c
int command_encode(int argc, char **argv); // tools.c
int command_decode(int argc, char **argv);
int command_tokenize(int argc, char **argv);
int command_info(int argc, char **argv);
int command_verify(int argc, char **argv); // verify.c
int command_synth(int argc, char **argv);  // synth.c
int command_scenes(int argc, char **argv); // data.c
int command_data(int argc, char **argv);
int command_pretrain(int argc, char **argv); // pretrain.c
int command_lcm(int argc, char **argv);      // train.c
int command_lora_finetune(int argc, char **argv);
int command_lora_distill(int argc, char **argv);
int command_lora(int argc, char **argv);   // lora.c
int command_fid(int argc, char **argv);    // fid.c
int command_report(int argc, char **argv); // report.c

#endif
