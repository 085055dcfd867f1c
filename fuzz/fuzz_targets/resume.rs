#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| backstop_properties::resume(bytes));
