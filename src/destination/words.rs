//! What an answer says, in words: about a lead that was taken, and why one was not. Pure.

use serde_json::Value;

use crate::config::{Redactor, ResponseRules};
use crate::http::Answer;
use crate::ledger::Receipt;
use crate::reason::one_line;

/// What a success says about the lead. A body that cannot be read changes nothing about the success.
pub(super) fn receipt(rules: &ResponseRules, body: &[u8], redactor: &Redactor) -> Receipt {
    let Ok(json) = serde_json::from_slice::<Value>(body) else {
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

/// The scalar at a pointer, as one line without secrets.
fn text_at(json: &Value, pointer: &str, redactor: &Redactor) -> Option<String> {
    if pointer.is_empty() {
        return None;
    }
    json.pointer(pointer).and_then(|value| match value {
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        Value::String(text) => Some(one_line(&redactor.clean(text))),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
    })
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
