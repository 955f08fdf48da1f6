//! What leadpost is made of: each dependency has its reason, and deny.toml is kept without cargo-deny, which takes long to build. Advisories are not
//! among that: they need the internet, and CI asks for them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use toml::{Table, Value};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn table(file: &str) -> Table {
    std::fs::read_to_string(Path::new(ROOT).join(file)).unwrap().parse().unwrap()
}

/// The texts of a list.
fn texts<'a>(value: &'a Value, member: Option<&str>) -> Vec<&'a str> {
    let text = |item: &'a Value| member.map_or(item, |member| &item[member]).as_str().unwrap();
    value.as_array().unwrap().iter().map(text).collect()
}

/// Name and source of every package in Cargo.lock.
fn locked() -> Vec<(String, Option<String>)> {
    let lock = table("Cargo.lock");
    let text = |package: &Value, key: &str| package.get(key).and_then(Value::as_str).map(str::to_owned);
    let packages = lock["package"].as_array().unwrap();
    packages.iter().map(|package| (text(package, "name").unwrap(), text(package, "source"))).collect()
}

#[test]
fn each_direct_dependency_is_named_with_its_reason_and_nothing_else_is() {
    let manifest = table("Cargo.toml");
    let direct: BTreeSet<&str> = manifest["dependencies"].as_table().unwrap().keys().map(String::as_str).collect();
    let security = include_str!("../../SECURITY.md");
    let (_, section) = security.split_once("\n## Dependencies\n").unwrap();
    let mut named = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let (crates, reason) = row.trim_matches(['|', ' ']).split_once(" | ").unwrap();
        assert!(reason.len() > 3, "{row}");
        for name in crates.split(", ") {
            assert!(named.insert(name.trim_matches('`')), "{name} is named twice");
        }
    }
    assert_eq!(named, direct);
}

#[test]
fn nothing_comes_from_elsewhere_than_the_registry_and_no_banned_crate_is_in_the_lock_file() {
    let deny = table("deny.toml");
    let banned = texts(&deny["bans"]["deny"], Some("crate"));
    let registries = texts(&deny["sources"]["allow-registry"], None);
    assert!(banned.len() > 5 && registries.len() == 1, "{banned:?} {registries:?}");
    for (name, source) in locked() {
        assert!(!banned.contains(&name.as_str()), "deny.toml bans {name}");
        match source {
            None => assert_eq!(name, "leadpost", "{name} comes from a folder"),
            Some(source) => {
                let known = registries.iter().any(|registry| source == format!("registry+{registry}"));
                assert!(known, "{name} comes from {source}");
            }
        }
    }
}

#[test]
fn each_advisory_that_is_ignored_has_a_reason_and_a_crate_that_is_still_there() {
    let deny = table("deny.toml");
    let names: BTreeSet<String> = locked().into_iter().map(|(name, _)| name).collect();
    let ignored = deny["advisories"]["ignore"].as_array().unwrap();
    assert!(!ignored.is_empty());
    for advisory in ignored {
        let (id, reason) = (advisory["id"].as_str().unwrap(), advisory["reason"].as_str().unwrap());
        let about = reason.split(' ').next().unwrap();
        assert!(
            id.starts_with("RUSTSEC-") && names.contains(about),
            "{id} is about {about}, which is gone: take it out"
        );
    }
}

/// Whether an SPDX expression can be met with these licences: `AND` needs both sides, `OR` one of them.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    // What is in parentheses is decided first, and then stands for itself.
    if let Some((before, after)) = expression.split_once(')') {
        let (before, within) = before.rsplit_once('(').unwrap();
        let known = if is_allowed(within, allowed) { allowed[0] } else { "none" };
        return is_allowed(&format!("{before}{known}{after}"), allowed);
    }
    let any_of = expression.replace('/', " OR ");
    any_of.split(" OR ").any(|all| all.split(" AND ").all(|licence| allowed.contains(&licence.trim())))
}

#[test]
fn licences_are_read_as_they_are_meant() {
    let allowed = ["MIT", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];
    for yes in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0/MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_allowed(yes, &allowed), "{yes}");
    }
    for no in ["", "GPL-3.0", "MIT AND GPL-3.0", "(Apache-2.0 OR ISC) AND MIT", "Apache-2.0"] {
        assert!(!is_allowed(no, &allowed), "{no}");
    }
}

fn cargo(arguments: &[&str]) -> String {
    let done = Command::new(env!("CARGO")).args(arguments).current_dir(ROOT).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn each_dependency_that_is_built_here_has_a_licence_that_deny_toml_allows() {
    let deny = table("deny.toml");
    let allowed = texts(&deny["licenses"]["allow"], None);
    let version = cargo(&["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = cargo(&["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let built: BTreeSet<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
    let mut looked_at = 0;
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if !built.contains(package["id"].as_str().unwrap()) || name == "leadpost" {
            continue;
        }
        looked_at += 1;
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(is_allowed(licence, &allowed), "{name}: {licence:?}");
    }
    assert!(looked_at > 200, "{looked_at}");
}
