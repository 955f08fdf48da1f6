//! What is under deploy/ fits leadpost itself: settings that it knows, ports and paths that it serves, time enough to drain. Schemas are checked by
//! scripts/manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use leadpost::config::{Settings, Source};
use serde_json::Value;

use crate::support::yaml;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What may pass between the end of the drain and the kill: results are settled, leases handed back, connections closed.
const SPARE_S: u64 = 15;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents of a YAML file.
fn documents(path: &str) -> Vec<Value> {
    yaml::documents(&read(path))
}

/// All that kustomize takes, components too: kind, name, object.
fn manifests() -> BTreeMap<(String, String), Value> {
    let base = "deploy/kubernetes";
    let mut all = BTreeMap::new();
    for folder in [base.to_owned(), format!("{base}/components/keda"), format!("{base}/components/monitoring")] {
        let [kustomization] = &documents(&format!("{folder}/kustomization.yaml"))[..] else { panic!("{folder}") };
        let resources = kustomization["resources"].as_array().unwrap();
        for file in resources {
            for object in documents(&format!("{folder}/{}", file.as_str().unwrap())) {
                let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
                let name = (text("/kind"), text("/metadata/name"));
                assert!(all.insert(name.clone(), object).is_none(), "{name:?} is there twice");
            }
        }
        // A file that nothing names would be forgotten.
        let named: BTreeSet<String> = resources.iter().map(|file| file.as_str().unwrap().to_owned()).collect();
        for entry in std::fs::read_dir(Path::new(ROOT).join(&folder)).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let is_other = ["kustomization.yaml", "secret.example.yaml"].contains(&file.as_str());
            assert!(
                !file.ends_with(".yaml") || is_other || named.contains(&file),
                "{folder}/{file} is in no kustomization"
            );
        }
    }
    all
}

/// The pods that the manifests make: the names of their objects, and their specs.
fn pods(manifests: &BTreeMap<(String, String), Value>) -> Vec<(String, &Value)> {
    let specs = manifests
        .iter()
        .filter_map(|((kind, name), object)| Some((format!("{kind} {name}"), object.pointer("/spec/template/spec")?)));
    specs.collect()
}

/// The keys of a Secret of the example.
fn secrets() -> BTreeMap<String, BTreeSet<String>> {
    let secrets = documents("deploy/kubernetes/secret.example.yaml");
    let of = |secret: &Value| {
        let keys = secret["stringData"].as_object().unwrap().keys().cloned().collect();
        (secret["metadata"]["name"].as_str().unwrap().to_owned(), keys)
    };
    secrets.iter().map(of).collect()
}

/// A folder in which the files that these settings name are there, and the settings as they come out of it.
fn settings_in(toml: &str, folders: &[(&str, &str)]) -> Result<Settings, String> {
    let place = tempfile::tempdir().unwrap();
    let mut text = toml.to_owned();
    for (mounted, secret) in folders {
        let folder = place.path().join(secret);
        std::fs::create_dir(&folder).unwrap();
        for key in &secrets()[*secret] {
            let content = match key.as_str() {
                "amqp_url" => "amqps://me:secret@h".to_owned(),
                "postgres_url" => "postgres://me:secret@h/d".to_owned(),
                "ca.crt" => crate::support::authority::Authority::new().pem(),
                _ => "0123456789abcdef0123456789abcdef".to_owned(),
            };
            std::fs::write(folder.join(key), content).unwrap();
        }
        text = text.replace(&format!("\"{mounted}/"), &format!("\"{}/", folder.display()));
    }
    let file: PathBuf = place.path().join("leadpost.toml");
    std::fs::write(&file, text).unwrap();
    Source { file: Some(file), ..Source::default() }.load().map_err(|error| error.to_string())
}

fn kubernetes_settings() -> Settings {
    let folders = [("/run/secrets/leadpost", "leadpost"), ("/run/secrets/leadpost-tls", "leadpost-tls")];
    settings_in(&read("deploy/kubernetes/leadpost.toml"), &folders).unwrap()
}

#[test]
fn a_worker_could_start_with_the_settings_for_kubernetes_and_they_are_safe_ones() {
    let settings = kubernetes_settings();
    assert!(settings.amqp.tls.ca().is_some() && settings.postgres.tls.ca().is_some(), "TLS with a CA of one's own");
    assert!(settings.admin.token.is_set() && !settings.admin.open, "metrics need the token");
    assert!(!settings.postgres.migrate, "the job does it");
    let keys: BTreeSet<_> = secrets()["leadpost"].clone();
    assert_eq!(secrets()["leadpost-migrate"], keys, "the job reads the same files");
    // What is commented out, too.
    let uncommented: String = read("deploy/kubernetes/leadpost.toml")
        .lines()
        .map(|line| if line.contains(" = \"") { line.trim_start_matches("# ") } else { line })
        .collect::<Vec<_>>()
        .join("\n");
    let known = leadpost::config::known_keys();
    let table: toml::Table = uncommented.parse().unwrap();
    for (section, members) in &table {
        for (key, value) in members.as_table().unwrap() {
            let keys = match value.as_table() {
                Some(inner) => inner.keys().map(|inner| format!("{section}.{key}.{inner}")).collect(),
                None => vec![format!("{section}.{key}")],
            };
            assert!(keys.iter().all(|key| known.contains(key)), "{keys:?}");
        }
    }
}

#[test]
fn the_worker_s_pod_has_time_to_drain_probes_that_the_admin_port_serves_and_the_files_that_its_settings_name() {
    let (manifests, settings) = (manifests(), kubernetes_settings());
    let deployment = &manifests[&("Deployment".to_owned(), "leadpost".to_owned())];
    let pod = deployment.pointer("/spec/template/spec").unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(
        grace * 1000 >= settings.shutdown.grace_ms + SPARE_S * 1000,
        "{grace} s for {} ms",
        settings.shutdown.grace_ms
    );

    let container = &pod["containers"][0];
    let port: std::net::SocketAddr = settings.admin.listen.parse().unwrap();
    assert!(port.ip().is_unspecified(), "probes come from the node");
    let ports = container["ports"].as_array().unwrap();
    assert_eq!((ports.len(), &ports[0]["name"], &ports[0]["containerPort"]), (1, &"admin".into(), &port.port().into()));
    for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let get = &container[probe]["httpGet"];
        assert_eq!((&get["path"], &get["port"]), (&path.into(), &"admin".into()), "{probe}");
    }
    let monitor = &manifests[&("PodMonitor".to_owned(), "leadpost".to_owned())]["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&monitor["port"], &monitor["path"]), (&"admin".into(), &"/metrics".into()));
    let credentials = &monitor["authorization"]["credentials"];
    let secret = &secrets()[credentials["name"].as_str().unwrap()];
    let token = credentials["key"].as_str().unwrap();
    assert!(secret.contains(token) && read("deploy/kubernetes/leadpost.toml").contains(&format!("/{token}\"")));

    // Whoever knocks at the admin port is let through by the policy, and by nothing else.
    let policy = &manifests[&("NetworkPolicy".to_owned(), "leadpost".to_owned())]["spec"];
    assert_eq!(policy["ingress"].as_array().unwrap().len(), 1);
    assert_eq!(policy["ingress"][0]["ports"][0]["port"], port.port());
    assert_eq!(policy["policyTypes"], serde_json::json!(["Ingress", "Egress"]));
}

#[test]
fn no_pod_can_do_more_than_it_needs_and_each_finds_what_it_mounts() {
    let (manifests, secrets) = (manifests(), secrets());
    let pods = pods(&manifests);
    assert_eq!(pods.len(), 3, "the worker and two jobs");
    let user = read("Dockerfile").lines().find_map(|line| line.strip_prefix("USER ")).unwrap().to_owned();
    for (name, pod) in pods {
        let context = &pod["securityContext"];
        let ids = format!("{}:{}", context["runAsUser"], context["runAsGroup"]);
        assert_eq!(ids, user, "{name}: the image's user");
        assert_eq!((&context["runAsNonRoot"], &context["fsGroup"]), (&true.into(), &context["runAsGroup"]), "{name}");
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        let [container] = &pod["containers"].as_array().unwrap()[..] else { panic!("{name}") };
        let own = &container["securityContext"];
        assert_eq!(
            (&own["allowPrivilegeEscalation"], &own["readOnlyRootFilesystem"]),
            (&false.into(), &true.into()),
            "{name}"
        );
        assert_eq!(own["capabilities"], serde_json::json!({ "drop": ["ALL"] }), "{name}");
        for part in ["/resources/requests/cpu", "/resources/requests/memory", "/resources/limits/memory"] {
            assert!(container.pointer(part).is_some(), "{name}: {part}");
        }
        let volumes = pod["volumes"].as_array().unwrap();
        for mount in container["volumeMounts"].as_array().unwrap() {
            assert_eq!(mount["readOnly"], true, "{name}: {mount}");
            let volume = volumes
                .iter()
                .find(|volume| volume["name"] == mount["name"])
                .unwrap_or_else(|| panic!("{name}: {mount}"));
            let known = match volume["secret"]["secretName"].as_str() {
                Some(secret) => secrets.contains_key(secret),
                None => volume["configMap"]["name"] == "leadpost",
            };
            assert!(known, "{name}: {volume}");
        }
        // The image's entry point is the program.
        let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
        let done =
            std::process::Command::new(env!("CARGO_BIN_EXE_leadpost")).args(arguments).arg("--help").output().unwrap();
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

#[test]
fn the_scaler_looks_at_the_queue_of_the_workers_and_leaves_one_for_the_retries() {
    let (manifests, settings) = (manifests(), kubernetes_settings());
    let scaler = &manifests[&("ScaledObject".to_owned(), "leadpost".to_owned())]["spec"];
    assert_eq!(scaler["scaleTargetRef"]["name"], "leadpost");
    assert!(scaler["minReplicaCount"].as_u64().unwrap() >= 1);
    let [trigger] = &scaler["triggers"].as_array().unwrap()[..] else { panic!("{scaler}") };
    assert_eq!(trigger["metadata"]["queueName"], settings.amqp.queue.as_str());
    assert_eq!(
        (&trigger["metadata"]["protocol"], &trigger["metadata"]["mode"]),
        (&"http".into(), &"QueueLength".into())
    );
    assert!(trigger["metadata"].as_object().unwrap().values().all(Value::is_string), "KEDA takes texts only");
    let authentication = trigger["authenticationRef"]["name"].as_str().unwrap();
    let authentication = &manifests[&("TriggerAuthentication".to_owned(), authentication.to_owned())];
    let reference = &authentication["spec"]["secretTargetRef"][0];
    assert!(secrets()[reference["name"].as_str().unwrap()].contains(reference["key"].as_str().unwrap()), "{reference}");
    assert_eq!(reference["parameter"], "host");
}

#[test]
fn the_systemd_unit_has_time_to_drain_gives_up_where_trying_again_is_pointless_and_names_settings_that_exist() {
    let unit = read("deploy/systemd/leadpost.service");
    let all = |key: &str| -> Vec<&str> {
        unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    let one = |key: &str| match all(key)[..] {
        [value] => value.to_owned(),
        ref values => panic!("{key}: {values:?}"),
    };
    let grace_ms = Settings::default().shutdown.grace_ms;
    assert!(one("TimeoutStopSec").parse::<u64>().unwrap() * 1000 >= grace_ms + SPARE_S * 1000);
    assert_eq!(one("RestartPreventExitStatus"), "2 78");
    let known = leadpost::config::known_keys();
    let credentials: BTreeSet<&str> =
        all("LoadCredential").iter().map(|value| value.split(':').next().unwrap()).collect();
    let mut used = BTreeSet::new();
    for (name, value) in all("Environment").iter().map(|value| value.split_once('=').unwrap()) {
        if let Some(key) = name.strip_prefix("LEADPOST__") {
            assert!(known.contains(&key.to_lowercase().replace("__", ".")), "{name}");
            used.insert(value.strip_prefix("%d/").unwrap());
        }
    }
    assert_eq!(used, credentials);
    assert!(all("ExecStart")[0].ends_with("leadpost --config /etc/leadpost/leadpost.toml run"));
    for (key, value) in [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("CapabilityBoundingSet", ""),
        ("MemoryDenyWriteExecute", "yes"),
    ] {
        assert_eq!(one(key), value, "{key}");
    }
}

#[test]
fn compose_gives_each_worker_time_to_drain_rights_to_nothing_and_an_admin_port_for_its_own_network_alone() {
    let [compose] = &documents("docker-compose.yml")[..] else { panic!("one document") };
    let mut workers = 0;
    for (name, service) in compose["services"].as_object().unwrap() {
        let service = merged(service);
        if service["image"] != "leadpost" {
            continue;
        }
        assert_eq!(
            (&service["read_only"], &service["cap_drop"]),
            (&true.into(), &serde_json::json!(["ALL"])),
            "{name}"
        );
        assert_eq!(service["security_opt"], serde_json::json!(["no-new-privileges:true"]), "{name}");
        if service["command"] != serde_json::json!(["run"]) {
            continue;
        }
        workers += 1;
        let grace: u64 = service["stop_grace_period"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
        assert!(grace * 1000 >= Settings::default().shutdown.grace_ms + SPARE_S * 1000, "{name}");
        let environment = merged(&service["environment"]);
        assert_eq!(environment["LEADPOST__ADMIN__OPEN"], "true", "{name}: Prometheus reads from another container");
        assert!(service.get("ports").is_none(), "{name}: no port of a worker is published");
        let known = leadpost::config::known_keys();
        for key in environment.as_object().unwrap().keys().filter_map(|name| name.strip_prefix("LEADPOST__")) {
            let key = key.to_lowercase().replace("__", ".");
            assert!(known.contains(&key) || key.starts_with("destination.variables."), "{name}: {key}");
        }
    }
    assert_eq!(workers, 6);
}

/// With what `<<` brings along.
fn merged(value: &Value) -> Value {
    let mut all = serde_json::Map::new();
    for base in
        value.get("<<").into_iter().flat_map(|base| base.as_array().cloned().unwrap_or_else(|| vec![base.clone()]))
    {
        all.extend(merged(&base).as_object().unwrap().clone());
    }
    all.extend(value.as_object().unwrap().clone());
    Value::Object(all)
}
