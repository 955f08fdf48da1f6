//! What an answer says, in words: about a lead that was taken, and why one was not. Pure.

use std::borrow::Cow;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::config::{Redactor, ResponseRules};
use crate::http::Answer;
use crate::lead::Fields;
use crate::ledger::Receipt;
use crate::reason::one_line;

/// What a success says about the lead. A body that cannot be read changes nothing about the success.
///
/// A few values of a body that may be long are all that is wanted, so no tree is made of it.
pub(super) fn receipt(rules: &ResponseRules, body: &[u8], redactor: &Redactor) -> Receipt {
    let Some(json) = Node::read(body) else {
        return Receipt {
            warning: Some("the API took the lead, but its answer is not JSON: no id is known".to_owned()),
            ..Receipt::default()
        };
    };
    let read = |pointer: &str| text_at(&json, pointer, redactor);
    let state = read(&rules.remote_state);
    let sub_state = read(&rules.remote_sub_state);
    let warning = state.as_deref().filter(|state| rules.warn_states.iter().any(|warn| warn == state)).map(|state| {
        let detail = sub_state.as_deref().map(|sub_state| format!(" ({sub_state})")).unwrap_or_default();
        format!("the API took the lead but is not working it: its state is {state}{detail}")
    });
    Receipt {
        remote_id: read(&rules.remote_id),
        remote_state: state,
        remote_sub_state: sub_state,
        next_schedule_time: read(&rules.next_schedule_time),
        warning,
    }
}

/// A JSON value, of which only this level is read.
enum Node<'a> {
    Object(Fields<'a>),
    Array(Vec<&'a RawValue>),
    Scalar,
}

impl<'a> Node<'a> {
    fn read(json: &'a [u8]) -> Option<Self> {
        match json.iter().find(|byte| !byte.is_ascii_whitespace())? {
            b'{' => serde_json::from_slice(json).ok().map(Node::Object),
            b'[' => serde_json::from_slice(json).ok().map(Node::Array),
            _ => serde_json::from_slice::<&RawValue>(json).ok().map(|_| Node::Scalar),
        }
    }

    /// The member, or item, of this name.
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        match self {
            // Of a name that stands twice, the last counts, as almost everywhere.
            Node::Object(fields) => fields.iter().filter(|(key, _)| *key == name).map(|(_, value)| value).last(),
            Node::Array(items) => items.get(name.parse::<usize>().ok()?).copied(),
            Node::Scalar => None,
        }
    }
}

/// The scalar at a JSON Pointer (RFC 6901), as one line without secrets.
fn text_at(json: &Node<'_>, pointer: &str, redactor: &Redactor) -> Option<String> {
    let mut names = pointer.strip_prefix('/')?.split('/').map(unescaped);
    let mut value = json.get(&names.next()?)?;
    for name in names {
        value = Node::read(value.get().as_bytes())?.get(&name)?;
    }
    match value.get().as_bytes().first()? {
        b'"' => {
            // Without escapes it is there as it is.
            let text = match serde_json::from_str::<&str>(value.get()) {
                Ok(text) => Cow::Borrowed(text),
                Err(_) => Cow::Owned(serde_json::from_str::<String>(value.get()).ok()?),
            };
            Some(one_line(&redactor.clean(&text)))
        }
        b'n' | b'{' | b'[' => None,
        _ => Some(value.get().to_owned()),
    }
}

fn unescaped(name: &str) -> Cow<'_, str> {
    if name.contains('~') { Cow::Owned(name.replace("~1", "/").replace("~0", "~")) } else { Cow::Borrowed(name) }
}

/// What a JSON value says, for people: `{"email": ["bad", "blank"]}` is `email: bad; blank`.
pub(super) fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join("; "),
        Value::Object(members) => {
            members.iter().map(|(name, value)| format!("{name}: {}", words(value))).collect::<Vec<_>>().join("; ")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// The human reason in a body, tolerantly: a JSON string, a member that APIs use for it, or the start of the text.
///
/// 7targets alone has been seen with `"text"`, `{"message": "text"}` and `{"body": "text"}`.
pub(super) fn reason_in(answer: &Answer) -> String {
    const MEMBERS: [&str; 8] =
        ["message", "Message", "error_description", "error", "detail", "reason", "body", "errors"];

    let text = String::from_utf8_lossy(&answer.body);
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::String(said)) => one_line(&said),
        Ok(Value::Object(members)) => {
            let said = MEMBERS.iter().find_map(|name| members.get(*name).filter(|value| !value.is_null()));
            // A field and what is wrong with it, mostly.
            let all = || words(&Value::Object(members.clone()));
            one_line(&said.map_or_else(all, words))
        }
        Ok(Value::Null) => String::new(),
        Ok(other) => one_line(&words(&other)),
        Err(_) if answer.is_html || text.trim_start().starts_with('<') => one_line(&without_tags(&text)),
        Err(_) => one_line(&text),
    }
}

/// The text of an HTML page, roughly.
fn without_tags(html: &str) -> String {
    let mut text = String::new();
    let mut in_tag = false;
    for c in html.chars() {
        match c {
            '<' => in_tag = true,
            '>' => {
                in_tag = false;
                text.push(' ');
            }
            _ if !in_tag => text.push(c),
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(json: &str, pointer: &str) -> Option<String> {
        text_at(&Node::read(json.as_bytes()).expect("JSON"), pointer, &Redactor::default())
    }

    #[test]
    fn a_pointer_finds_what_serde_json_finds() {
        let json = r#"{"id":7,"a":{"b":[{"c":"x\ny"},null,1.50,true]},"a/b":"slash","m~n":"tilde","":"empty","twice":1,"twice":2}"#;
        let whole: Value = serde_json::from_str(json).expect("JSON");
        let pointers = [
            "/id", "/a/b/0/c", "/a/b/1", "/a/b/3", "/a/b/9", "/a/b/x", "/a", "/a~1b", "/m~0n", "/", "/twice", "/none",
            "/id/x", "id",
        ];
        for pointer in pointers {
            let expected = whole.pointer(pointer).and_then(|value| match value {
                Value::String(text) => Some(one_line(text)),
                Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
                Value::Null | Value::Array(_) | Value::Object(_) => None,
            });
            assert_eq!(at(json, pointer), expected, "{pointer}");
        }
        assert_eq!(at(json, "/a/b/2").as_deref(), Some("1.50"), "digits stay as they are");
        assert_eq!(at("[5]", "/0").as_deref(), Some("5"));
        assert_eq!(at("5", "/0"), None);
        assert!(Node::read(b"{\"id\":7").is_none() && Node::read(b"").is_none() && Node::read(b"{} x").is_none());
    }
}
