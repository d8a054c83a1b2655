//! Random commands to the traffic model and to a plain one, which must agree;
//! after every step one session that parks is admitted, or open ones that may
//! stand side by side.

#![no_main]

#[path = "../../crates/tunnel-model/tests/it/live_harness.rs"]
mod live_harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    live_harness::run(bytes);
});
