//! Reads what `/metrics` says, and takes nothing that Prometheus' text format 0.0.4 or OpenMetrics 1.0.0 does not allow.

use std::collections::{BTreeMap, BTreeSet};

use leadpost::metrics::Format;

/// A family of metrics.
#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub help: String,
    pub samples: Vec<Sample>,
}

/// A line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// What was exposed, by the names of families; those of counters end with `_total`, and those of infos with `_info`, in both formats.
#[derive(Debug)]
pub struct Exposition(pub BTreeMap<String, Family>);

impl Family {
    /// Names of labels, without those that make a histogram.
    pub fn labels(&self) -> BTreeSet<&str> {
        let names = self.samples.iter().flat_map(|sample| sample.labels.keys());
        names.map(String::as_str).filter(|name| *name != "le").collect()
    }
}

impl Exposition {
    /// All samples, each by its name.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.0.values().flat_map(|family| &family.samples)
    }

    /// The value of the only sample of this name with these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let is_it = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|is| is == value))
        };
        let found: Vec<_> = self.samples().filter(is_it).collect();
        let [only] = &found[..] else { panic!("not one sample {name} {labels:?}: {found:#?}") };
        only.value
    }

    /// The sum of all samples of this name with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let is_it = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|is| is == value))
        };
        self.samples().filter(is_it).map(|sample| sample.value).sum()
    }

    /// Reads a text; panics at what is not allowed.
    pub fn read(text: &str, format: Format) -> Self {
        let text = match format {
            Format::Prometheus => text,
            Format::OpenMetrics => text.strip_suffix("# EOF\n").expect("it ends with its mark"),
        };
        assert!(text.ends_with('\n') && !text.contains("# EOF"), "each line ends");
        let mut reader = Reader { format, families: BTreeMap::new(), current: None, unit: None };
        text.lines().for_each(|line| reader.line(line));
        reader.end();
        let families = reader.families;
        for (name, family) in &families {
            assert!(!family.samples.is_empty() && family.help.len() > 3, "{name} says nothing");
            if family.kind == "histogram" {
                check_histograms(name, family);
            }
        }
        Self(families)
    }
}

struct Reader {
    format: Format,
    families: BTreeMap<String, Family>,
    /// The family that is being read, by the name that its lines have.
    current: Option<(String, Family)>,
    unit: Option<String>,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (word, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
            assert!(is_name(name), "{line}");
            match word {
                "HELP" => {
                    self.end();
                    assert!(!rest.contains('\\'), "{line}: nothing in it needs to be escaped");
                    self.current = Some((name.to_owned(), Family { help: rest.to_owned(), ..Family::default() }));
                }
                "TYPE" => {
                    let (current, family) =
                        self.current.as_mut().unwrap_or_else(|| panic!("{line} comes before its help"));
                    assert!(current == name && family.kind.is_empty() && family.samples.is_empty(), "{line}");
                    let known = match self.format {
                        Format::Prometheus => &["counter", "gauge", "histogram"][..],
                        Format::OpenMetrics => &["counter", "gauge", "histogram", "info"],
                    };
                    assert!(known.contains(&rest), "{line}");
                    family.kind = rest.to_owned();
                }
                "UNIT" => {
                    assert_eq!(self.format, Format::OpenMetrics, "{line}: a comment to Prometheus");
                    assert!(name.ends_with(&format!("_{rest}")), "{line}: the unit is the end of the name");
                    assert!(["seconds", "bytes", "ratio"].contains(&rest), "{line}: a base unit");
                    self.unit = Some(rest.to_owned());
                }
                other => panic!("{other} is no keyword: {line}"),
            }
            return;
        }
        let (current, family) = self.current.as_mut().unwrap_or_else(|| panic!("{line} comes before its help"));
        let sample = sample(line);
        let suffixes = match (family.kind.as_str(), self.format) {
            ("counter", Format::OpenMetrics) => &["_total"][..],
            ("info", Format::OpenMetrics) => &["_info"],
            ("histogram", _) => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let is_of_it = suffixes.iter().any(|suffix| sample.name == format!("{current}{suffix}"));
        assert!(is_of_it, "{line} is not of {current}, or not as a {} is written", family.kind);
        assert!(
            !family.samples.iter().any(|other| other.name == sample.name && other.labels == sample.labels),
            "{line} is there twice"
        );
        match family.kind.as_str() {
            "counter" => {
                assert!(sample.name.ends_with("_total") && sample.value >= 0.0 && sample.value.is_finite(), "{line}");
            }
            "info" => assert_eq!(sample.value, 1.0, "{line}"),
            _ => {}
        }
        family.samples.push(sample);
    }

    /// Ends a family: it must not come again.
    fn end(&mut self) {
        self.unit = None;
        let Some((name, family)) = self.current.take() else { return };
        // As Prometheus has them.
        let name = match (family.kind.as_str(), self.format) {
            ("counter", Format::OpenMetrics) => format!("{name}_total"),
            ("info", Format::OpenMetrics) => format!("{name}_info"),
            _ => name,
        };
        assert!(family.kind != "gauge" || !name.ends_with("_total"), "{name} is no counter");
        let kind = if family.kind == "info" { "gauge".to_owned() } else { family.kind };
        let before = self.families.insert(name.clone(), Family { kind, ..family });
        assert!(before.is_none(), "{name} is there twice");
    }
}

fn is_name(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(is_word)
}

/// `name{label="value",…} value`, with nothing behind it: we write no timestamps and no exemplars.
fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line} has no value"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (key, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            let (value, after) = quoted(value).unwrap_or_else(|| panic!("{line}: a label's value does not end"));
            assert!(is_name(key) && labels.insert(key.to_owned(), value).is_none(), "{line}");
            if let Some(after) = after.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = after.strip_prefix(',').unwrap_or_else(|| panic!("{line}"));
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => {
            assert!(number.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c)), "{line}");
            number.parse().unwrap_or_else(|_| panic!("{line}"))
        }
    };
    Sample { name: name.to_owned(), labels, value }
}

/// A label's value up to its end, and what is behind that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(match chars.next()? {
                'n' => '\n',
                c @ ('"' | '\\') => c,
                _ => return None,
            }),
            '\n' => return None,
            c => value.push(c),
        }
    }
    None
}

/// Buckets rise, the last is that of everything, and agrees with the count.
fn check_histograms(name: &str, family: &Family) {
    let mut series: BTreeMap<Vec<(&str, &str)>, Vec<&Sample>> = BTreeMap::new();
    for sample in &family.samples {
        let labels = sample.labels.iter().filter(|(key, _)| *key != "le");
        series.entry(labels.map(|(key, value)| (key.as_str(), value.as_str())).collect()).or_default().push(sample);
    }
    for samples in series.into_values() {
        let of = |suffix: &'static str| samples.iter().filter(move |sample| sample.name == format!("{name}{suffix}"));
        let buckets: Vec<(f64, f64)> = of("_bucket")
            .map(|bucket| {
                let bound = match bucket.labels["le"].as_str() {
                    "+Inf" => f64::INFINITY,
                    bound => bound.parse().unwrap(),
                };
                (bound, bucket.value)
            })
            .collect();
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name}: {buckets:?}");
        let count = of("_count").map(|sample| sample.value).sum::<f64>();
        assert_eq!(buckets.last().copied(), Some((f64::INFINITY, count)), "{name}");
        assert_eq!((of("_count").count(), of("_sum").count()), (1, 1), "{name}");
        assert!(buckets.len() > 5, "{name}: {buckets:?}");
    }
}
