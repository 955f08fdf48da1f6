//! jq expressions: from a lead to a body, and tests on answers. The one module that names `jaq`.
//!
//! ```text
//!   text ──compile, once──> Program ──run(input, arguments)──> Json | Failure
//! ```
//!
//! # Rules
//! - The same expression, input and arguments always give the same: no clock, no environment, no input but the one, no output but
//!   the one. What would break that (`now`, `env`, `input`, `debug`, `halt`, …) does not exist here.
//! - Numbers keep every digit: `12345678901234567890` and `1.10` come out as they went in.
//! - A [`Failure`] repeats nothing of the input: it holds text of the expression, or ours.
//! - An expression that never ends is not stopped: expressions are the operator's own.

use std::fmt;

use jaq_core::data::JustLut;
use jaq_core::load::{Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Vars, load};
use jaq_json::{Val, read, write};
use serde::de::IgnoredAny;

/// Native functions that would make an expression impure.
const IMPURE: [&str; 7] = ["now", "env", "halt", "localtime", "strflocaltime", "debug_empty", "stderr_empty"];

/// Definitions that use them.
const IMPURE_DEFS: [&str; 4] = ["debug", "stderr", "halt", "halt_error"];

/// Deeper nesting is refused: every level costs stack. As deep as `serde_json` goes.
const MAX_DEPTH: usize = 128;

/// Longer numbers are refused: to read one takes the square of its length.
const MAX_DIGITS: usize = 1000;

type Filter = jaq_core::Filter<JustLut<Val>>;

/// An expression, ready to run, as often as one likes and from several threads.
pub struct Program {
    source: String,
    filter: Filter,
    arguments: usize,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Program").field(&self.source).finish()
    }
}

/// A JSON value as jq sees it.
#[derive(Clone)]
pub struct Json(Val);

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json")
    }
}

/// Why an expression gave nothing that can be used, without a word of what it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The expression called `error` with a text that stands in it.
    #[error("{0}")]
    Raised(String),
    /// It met a value that it cannot work with.
    #[error("it does not work on this: a value has another type or form than the expression expects")]
    Mismatch,
    /// It gave no value.
    #[error("it gives nothing")]
    Nothing,
    /// It gave more than one value.
    #[error("it gives more than one value")]
    Several,
    /// It gave a value that JSON does not know, such as `nan`.
    #[error("it gives something that is not JSON")]
    NotJson,
}

impl Json {
    /// Reads JSON.
    ///
    /// # Errors
    /// When it is none (RFC 8259), is nested deeper than 128 levels, has a number of more than 1,000 digits, or an escape that stands
    /// for no character.
    pub fn read(json: &[u8]) -> Result<Self, NotJson> {
        if !is_tame(json) || serde_json::from_slice::<IgnoredAny>(json).is_err() {
            return Err(NotJson);
        }
        read::parse_single(json).map(Self).map_err(|_| NotJson)
    }

    /// A string.
    pub fn text(text: &str) -> Self {
        Self(Val::from(text.to_owned()))
    }

    /// Whether jq takes it for true: anything but `false` and `null`.
    pub fn is_true(&self) -> bool {
        !matches!(self.0, Val::Null | Val::Bool(false))
    }

    /// As JSON text, without white space.
    ///
    /// # Errors
    /// [`Failure::NotJson`].
    pub fn write(&self) -> Result<Vec<u8>, Failure> {
        let mut text = Vec::new();
        write::write(&mut text, &write::Pp::default(), 0, &self.0).map_err(|_| Failure::NotJson)?;
        // jq's values are more than JSON's.
        serde_json::from_slice::<IgnoredAny>(&text).map_err(|_| Failure::NotJson)?;
        Ok(text)
    }

    /// A string's text, or a number's digits; `None` for all else.
    pub fn as_text(&self) -> Option<String> {
        match &self.0 {
            Val::TStr(text) => String::from_utf8(text.to_vec()).ok(),
            Val::Num(number) => Some(number.to_string()),
            Val::Null | Val::Bool(_) | Val::BStr(_) | Val::Arr(_) | Val::Obj(_) => None,
        }
    }
}

/// That a text is not JSON which an expression can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not JSON")]
pub struct NotJson;

impl Program {
    /// Compiles an expression that may use these variables, such as `$lead_id`.
    ///
    /// # Errors
    /// What cannot be read in it, or is not known, in words.
    pub fn compile(source: &str, variables: &[&'static str]) -> Result<Self, String> {
        let arena = Arena::default();
        let defs = jaq_core::defs()
            .chain(jaq_std::defs())
            .chain(jaq_json::defs())
            .filter(|definition| !IMPURE_DEFS.contains(&definition.name));
        let funs =
            jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs()).filter(|(name, ..)| !IMPURE.contains(name));
        let modules = Loader::new(defs)
            .load(&arena, File { code: source, path: () })
            .map_err(|errors| unread(source, &errors))?;
        let compiled = Compiler::default().with_funs(funs).with_global_vars(variables.iter().copied()).compile(modules);
        let filter = compiled.map_err(|errors| {
            let unknown = errors.into_iter().flat_map(|(_, unknown)| unknown);
            let unknown: Vec<_> = unknown.map(|(name, kind)| format!("there is no {} {name}", kind.as_str())).collect();
            format!("{}; $variables there are: {}", unknown.join(", "), variables.join(", "))
        })?;
        Ok(Self { source: source.to_owned(), filter, arguments: variables.len() })
    }

    /// Runs the expression on an input; `arguments` are the values of the variables, in their order.
    ///
    /// # Errors
    /// When it does not give exactly one value.
    ///
    /// # Panics
    /// When there are not as many arguments as variables.
    pub fn run(&self, input: Json, arguments: &[Json]) -> Result<Json, Failure> {
        assert_eq!(arguments.len(), self.arguments, "each variable has a value");
        let vars = Vars::new(arguments.iter().map(|argument| argument.0.clone()));
        let ctx = Ctx::<JustLut<Val>>::new(&self.filter.lut, vars);
        let mut values = self.filter.id.run((ctx, input.0)).map(jaq_core::unwrap_valr);
        let first = values.next().ok_or(Failure::Nothing)?.map_err(|error| self.failure(error))?;
        match values.next() {
            None => Ok(Json(first)),
            Some(Ok(_)) => Err(Failure::Several),
            Some(Err(error)) => Err(self.failure(error)),
        }
    }

    /// What may be said of an error: a text that its author wrote into the expression, and nothing else.
    fn failure(&self, error: jaq_core::Error<Val>) -> Failure {
        match Json(error.into_val()).as_text() {
            Some(text) if self.source.contains(&format!("\"{text}\"")) => Failure::Raised(text),
            _ => Failure::Mismatch,
        }
    }
}

/// Where an expression cannot be read.
fn unread(source: &str, errors: &[(File<&str, ()>, load::Error<&str>)]) -> String {
    let at = errors.iter().find_map(|(_, error)| match error {
        load::Error::Io(errors) => errors.first().map(|(part, _)| *part),
        load::Error::Lex(errors) => errors.first().map(|(_, part)| *part),
        load::Error::Parse(errors) => errors.first().map(|(_, part)| *part),
    });
    let rest = at.unwrap_or_default();
    let offset =
        (rest.as_ptr() as usize).checked_sub(source.as_ptr() as usize).filter(|offset| *offset <= source.len());
    let before = source.get(..offset.unwrap_or(source.len())).unwrap_or(source);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("it cannot be read from line {line}, column {column} on")
}

/// Whether reading it costs no more than its size suggests: neither deep arrays and objects nor long numbers, outside of strings.
fn is_tame(json: &[u8]) -> bool {
    let (mut depth, mut digits) = (0_usize, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        digits = if byte.is_ascii_digit() && !in_string { digits + 1 } else { 0 };
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH || digits > MAX_DIGITS {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(source: &str, input: &str) -> Result<String, Failure> {
        let program = Program::compile(source, &["$lead_id"]).expect("it compiles");
        let value = program.run(Json::read(input.as_bytes()).expect("JSON"), &[Json::text("id-1")])?;
        Ok(String::from_utf8(value.write()?).expect("UTF-8"))
    }

    #[test]
    fn values_come_out_with_every_digit_and_letter_that_went_in() {
        let input = r#"{"n":12345678901234567890123,"d":1.10,"e":1e400,"é":"\u00e9\n\"","b":[true,null]}"#;
        let output = run(".", input).expect("a value");
        assert_eq!(output, r#"{"n":12345678901234567890123,"d":1.10,"e":1e400,"é":"é\n\"","b":[true,null]}"#);
        assert_eq!(run("[{lead_id: $lead_id, x: (.y // 7)}]", "{}").as_deref(), Ok(r#"[{"lead_id":"id-1","x":7}]"#));
    }

    #[test]
    fn an_expression_is_pure() {
        for impure in
            ["now", "env", "$ENV", "input", "debug", "stderr", "halt", "localtime", "import \"a\" as a; .", "$__loc__"]
        {
            assert!(Program::compile(impure, &[]).is_err(), "{impure}");
        }
    }

    #[test]
    fn a_failure_says_what_the_expression_says_and_nothing_of_the_input() {
        let input = r#"{"name":"Zanzibar","n":1}"#;
        let failure = |source: &str| run(source, input).expect_err("it fails");
        assert_eq!(failure(r#"error("the phone has no digits")"#).to_string(), "the phone has no digits");
        for (source, expected) in [
            (".name.x", Failure::Mismatch),
            ("error(.name)", Failure::Mismatch),
            (r#"error("bad \(.name)")"#, Failure::Mismatch),
            (".name + .n", Failure::Mismatch),
            ("error", Failure::Mismatch),
            ("empty", Failure::Nothing),
            (".name, .n", Failure::Several),
            ("nan", Failure::NotJson),
            ("{(.n|tostring): 1} | with_entries(.key = 1)", Failure::NotJson),
        ] {
            let failure = failure(source);
            assert_eq!(failure, expected, "{source}");
            assert!(!failure.to_string().contains("Zanzibar"));
        }
    }

    #[test]
    fn what_cannot_be_compiled_is_named_with_its_place() {
        let problem = |source: &str| Program::compile(source, &["$lead_id"]).expect_err("refused");
        assert_eq!(problem("{a: .b,\n c: foo(}"), "it cannot be read from line 2, column 9 on");
        assert!(problem(".a | nonsense").contains("there is no filter nonsense"), "{}", problem(".a | nonsense"));
        assert!(problem("$leadid").contains("there is no variable $leadid; $variables there are: $lead_id"));
    }

    #[test]
    fn what_is_not_json_or_nested_too_deep_is_refused_without_a_crash() {
        for text in ["", "nan", "NaN", "# x\n1", "{\"a\":\"\\ud800\"}", "1 2", "b\"x\""] {
            assert_eq!(Json::read(text.as_bytes()).expect_err("refused"), NotJson, "{text}");
        }
        let nested = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert!(Json::read(nested(128).as_bytes()).is_ok());
        assert!(Json::read(nested(129).as_bytes()).is_err());
        assert!(Json::read(nested(1_000_000).as_bytes()).is_err());
        assert!(Json::read("7".repeat(1000).as_bytes()).is_ok());
        assert!(Json::read("7".repeat(1001).as_bytes()).is_err());
        assert!(Json::read(format!("\"{}\"", "7".repeat(5000)).as_bytes()).is_ok());
        assert!(
            Json::read(format!("[\"{}\"]", "[".repeat(1000)).as_bytes()).is_ok(),
            "brackets in strings do not nest"
        );
    }

    #[test]
    fn truth_and_text_are_those_of_jq() {
        let is_true = |json: &str| Json::read(json.as_bytes()).expect("JSON").is_true();
        assert!(["0", "\"\"", "[]", "true"].iter().all(|json| is_true(json)));
        assert!(["null", "false"].iter().all(|json| !is_true(json)));
        let text = |json: &str| Json::read(json.as_bytes()).expect("JSON").as_text();
        assert_eq!(text("\"a b\"").as_deref(), Some("a b"));
        assert_eq!(text("12345678901234567890").as_deref(), Some("12345678901234567890"));
        assert_eq!(text("[1]"), None);
    }
}
