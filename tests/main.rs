//! The integration tests: one binary, one module a topic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

// Hostile kernels, damaged files, signals: no crash, no hang, one clear line.
mod attack;
// Layers and sites that are asked for, and nothing else.
mod asked;
// Architectures whose every node is measured.
mod archs;
// The commit that broke a kernel, in a repository made for it.
mod bisect;

// Engines that bring their own trace: the header, the Python writer, the examples.
mod bring;
// What is kept between runs, and who may have written it.
mod cache;
// A matrix of runs: its file, its verdicts, its parts.
mod check;
// Mistakes in models of any architecture are named, and noise is not.
mod causes;
// What the checked build reports, and what it does not.
mod checked;
// The program as a user types it.
mod cli;
// Distances, tolerances and floors against plain loops.
mod compare;
// Kernels that others wrote: what their contracts say, and what is wrong with them.
mod contract;
// The same engine on two devices.
mod cross;
// Right engines that round in a way of their own.
mod conventions;
// The first layers of a large model.
mod cut;
// What the machine has, whatever it has.
mod doctor;
// What the docs show of commands.
mod docs;
// The engine on the host device against llama.cpp.
mod engine;
// The page of a report, in a browser.
mod page;
// Which models the engine runs, and what no kernel computes of others.
mod plan;
// A recorded engine is blamed for what `run` blames it for.
mod explain;
// Faults planted in llama.cpp for a few architectures.
mod faults_archs;
// The same kernels on a GPU, where there is one and `make gpu-test` asks for them.
mod gpu;
// CUDA semantics on the CPU: barriers, warps, half, errors.
mod host_device;
// Kernels of the kind that people write, unchanged.
mod ordinary;
// What a person sees of a long run, and what a signal leaves of it.
mod interrupted;
// The folders of src/ import downwards only.
mod layers;
// GGUF files, good and hostile; the ledger.
mod model;
// No architecture is known by its name.
mod names;
// A reference that is committed, in place of llama.cpp.
mod pinned;
// What a change of the engine fixed, and what is not called fixed.
mod progress;
// The kernels that the program carries built.
mod prebuilt;
// Traces that divide the same tokens otherwise, or have rows of some.
mod positions;
// Several sequences in one trace.
mod sequences;
// Engines that divide their work as serving ones do, right and wrong.
mod serving;
// Weights as an engine holds them.
mod loaded;
// llama.cpp's tensors are the ones that the site table means.
mod reference;
// A baseline that operations are held to, and what moves it.
mod ratchet;
mod replay;
// llama.cpp's layers on servers.
mod rpc;
// Scores and probs of a few queries of a long prompt.
mod rows;
// scripts/setup.sh, with a made-up machine around it.
mod setup;
// The engine's attention as a snapshot.
mod snapshot;
// Where the time goes.
mod spans;
// Random models of every shape load, compute and are written whole or not at all.
mod synth;
// Random models of every architecture, planned by llama.cpp in a child process.
mod synth_arch;
// Recording a run to a folder, reading it back, and refusing what is not it.
mod trace;
// A verdict at each save.
mod watch;
mod widened;
// The GitHub Action and the workflow, as a shell runs them.
mod workflow;
