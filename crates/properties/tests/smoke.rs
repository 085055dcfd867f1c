//! The properties over the seeds of their fuzz targets and over some thousand edits of these: what `make fuzz` does at
//! length.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};

const EDITS: u32 = 2000;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = fuzz_dir().join("seeds").join(target);
    let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut seeds: Vec<_> = files
        .map(|file| file.unwrap())
        .map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()))
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}

/// The words of a dictionary of libFuzzer's: lines such as `"text\x0a"`.
fn words(target: &str) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(fuzz_dir().join("dictionaries").join(format!("{target}.dict"))).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| word(line.strip_prefix('"').and_then(|it| it.strip_suffix('"')).expect(line))).collect()
}

fn word(mut quoted: &str) -> Vec<u8> {
    let mut word = Vec::new();
    while let Some(c) = quoted.chars().next() {
        let (byte, length) = match quoted.strip_prefix('\\') {
            Some(escape) if escape.starts_with('x') => (u8::from_str_radix(&escape[1..3], 16).unwrap(), 4),
            Some(escape) => (escape.as_bytes()[0], 2),
            None => (quoted.as_bytes()[0], 1),
        };
        assert!(c.is_ascii(), "write it as \\x..: {quoted}");
        word.push(byte);
        quoted = &quoted[length..];
    }
    word
}

/// What takes the place of a part of the bytes.
fn replacement(words: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => Just(Vec::new()),
        6 => prop::sample::select(words),
        2 => prop::collection::vec(any::<u8>(), 1..8),
        1 => (any::<u8>(), 1_usize..300).prop_map(|(byte, count)| vec![byte; count]),
    ]
}

fn edited(seed: &[u8], edits: &[(Index, usize, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for (at, length, replacement) in edits {
        let at = at.index(bytes.len() + 1);
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, replacement.iter().copied());
    }
    bytes
}

fn check(target: &str) {
    let (_, property) = backstop_properties::ALL.into_iter().find(|(name, _)| *name == target).unwrap();
    let seeds = seeds(target);
    for (_, seed) in &seeds {
        property(seed);
    }
    // The same each time: looking for new ones is the fuzzer's work.
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(EDITS) };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let edits = prop::collection::vec((any::<Index>(), 0_usize..12, replacement(words(target))), 1..6);
    let strategy = (prop::sample::select(seeds), edits);
    let result = runner.run(&strategy, |((_, seed), edits)| {
        property(&edited(&seed, &edits));
        Ok(())
    });
    if let Err(TestError::Fail(why, ((name, seed), edits))) = result {
        panic!("{target}, seed {name}: {why}\n{:?}", String::from_utf8_lossy(&edited(&seed, &edits)));
    }
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        #[test]
        fn every_property_is_tested() {
            let names = backstop_properties::ALL.map(|(name, _)| name);
            assert_eq!(names, [$(stringify!($name)),*]);
            for name in names {
                let target = fuzz_dir().join("fuzz_targets").join(format!("{name}.rs"));
                assert!(target.exists(), "{} is missing", target.display());
            }
        }
    };
}
targets!(config, forward, peek, resume, sse, stream, wire);
