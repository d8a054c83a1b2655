//! Random commands: the model and a plain reference agree, and the invariants
//! hold after every step. The harness is that of the model's own tests.
#![no_main]

#[path = "../../crates/tunnel-model/tests/it/harness.rs"]
mod harness;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    harness::run(bytes);
});
