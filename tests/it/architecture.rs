//! The house stays as `src/lib.rs` draws it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// From top to bottom: a module may use those before it.
const ORDER: [&str; 20] = [
    "fault",
    "jq",
    "config",
    "telemetry",
    "lifecycle",
    "reason",
    "http",
    "schedule",
    "traces",
    "lead",
    "broker",
    "ledger",
    "auth",
    "destination",
    "flow",
    "metrics",
    "worker",
    "admin",
    "sandbox",
    "cli",
];

/// A crate, and the only modules that name it.
const HOMES: [(&str, &[&str]); 13] = [
    ("jaq_core", &["jq"]),
    ("jaq_std", &["jq"]),
    ("jaq_json", &["jq"]),
    ("lapin", &["broker"]),
    ("sqlx", &["ledger"]),
    ("reqwest", &["http", "traces", "auth", "destination", "cli", "sandbox"]),
    ("backoff", &["schedule"]),
    ("prometheus_client", &["metrics"]),
    ("opentelemetry", &["traces"]),
    ("opentelemetry_sdk", &["traces"]),
    ("opentelemetry_otlp", &["traces"]),
    ("x509_cert", &["config"]),
    ("subtle", &["admin"]),
];

/// Tests included.
const MAX_LINES: usize = 620;

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// Each file's module, name and code; comments and tests are left out.
fn house() -> Vec<(String, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let module = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            (module, name, code.join("\n"))
        })
        .filter(|(module, ..)| module != "lib" && module != "main")
        .collect()
}

#[test]
fn a_module_uses_only_those_above_it() {
    let mut broken = BTreeSet::new();
    for (module, name, code) in house() {
        let place = ORDER
            .iter()
            .position(|known| *known == module)
            .unwrap_or_else(|| panic!("{module} has no place in the house"));
        for below in &ORDER[place + 1..] {
            if code.contains(&format!("crate::{below}::")) || code.contains(&format!("crate::{below};")) {
                broken.insert(format!("{name} uses {below}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_sandbox_uses_no_other_module() {
    // It is the other side: it must not agree with the worker because they share a mistake.
    for (_, name, code) in house().into_iter().filter(|(module, ..)| module == "sandbox") {
        let own = code.replace("crate::sandbox", "");
        assert!(!own.contains("crate::"), "{name} uses another module");
    }
}

#[test]
fn no_file_is_too_long_to_be_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for path in files {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines; split it", path.display());
    }
}

#[test]
fn a_crate_is_named_only_where_it_is_at_home() {
    for (krate, homes) in HOMES {
        for (module, name, code) in house() {
            let named = code.contains(&format!("{krate}::"));
            assert!(!named || homes.contains(&module.as_str()), "{name} names {krate}");
        }
    }
}

#[test]
fn the_pure_parts_have_no_clock_no_chance_and_no_waiting() {
    let pure = [
        "lead/",
        "destination/outcome.rs",
        "schedule.rs",
        "flow/circuit.rs",
        "flow/hold.rs",
        "flow/limit.rs",
        "flow/rate.rs",
        "flow/share.rs",
        "worker/verdict.rs",
    ];
    for (_, name, code) in house().into_iter().filter(|(_, name, _)| pure.iter().any(|pure| name.starts_with(pure))) {
        for banned in ["async ", ".await", "Instant::now", "SystemTime::now", "fastrand::", "new_v4", "now_v7"] {
            assert!(!code.contains(banned), "{name} has {banned}");
        }
    }
}

#[test]
fn the_house_is_drawn_as_it_is() {
    let map = include_str!("../../src/lib.rs");
    for module in ORDER {
        assert!(map.contains(&format!("[`{module}`]")), "src/lib.rs does not say what {module} is for");
        assert!(map.contains(&format!("pub mod {module};")), "{module} is not there");
    }
}
