//! What each preset makes of the answers that its API is known to give, and of those that would burn a backlog if they were misread.

use crate::config::{Destination, Redactor, Source};
use crate::http::{Answer, Exchange};

use super::{Answers, Query};

fn destination(preset: &str) -> Destination {
    let mut source = Source::of_nothing();
    source.flags.push(("destination.preset".to_owned(), preset.to_owned()));
    source.flags.push(("destination.variables.location_id".to_owned(), "loc-1".to_owned()));
    source.read().expect("a preset").destination
}

fn answered(status: u16, body: &str) -> Exchange {
    Exchange::Answered(Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() })
}

#[test]
fn answers_are_read_as_the_api_means_them_and_no_fault_of_the_set_up_is_a_leads() {
    let squad = [
        (201, "", "delivered"),
        (200, "<html>Log in</html>", "systemic"),
        (200, "[]", "uncertain"),
        (400, r#"{"phone_number":["is not valid"]}"#, "rejected"),
        (400, r#"{"lead_id":["already exists"]}"#, "duplicate"),
        (401, "", "unauthorized"),
        (403, "<html>Forbidden</html>", "unauthorized"),
        (404, "<html>", "systemic"),
        (429, r#"{"detail":"You hit a rate limit!"}"#, "retry"),
        (500, "<html>", "uncertain"),
        (503, "", "retry"),
    ];
    let paya = [
        (201, r#"{"contact":{"id":"c-1"}}"#, "delivered"),
        (422, r#"{"errors":{"contact_api_id":["must be unique per location"]}}"#, "duplicate"),
        (422, r#"{"errors":{"contact_api_id":["should contain at most 36 characters"]}}"#, "rejected"),
        (422, r#"{"errors":{"last_name":["cannot be blank"]}}"#, "rejected"),
        (422, r#"{"errors":{"location_id":["location_id provided is not valid"]}}"#, "systemic"),
        (422, "not even JSON", "rejected"),
        (409, "Gone - record deleted", "rejected"),
        (401, "", "unauthorized"),
        (403, "", "systemic"),
        (302, "", "systemic"),
        (500, "", "uncertain"),
    ];
    let kaisa = [
        (200, r#"{"customers":[{"customer_id":7}]}"#, "delivered"),
        (200, r#"{"customers":[{"customer_id":7}],"errors":[]}"#, "delivered"),
        (200, r#"{"customers":[{"customer_id":7}],"errors":null}"#, "delivered"),
        (200, r#"{"errors":["name is too long"]}"#, "rejected"),
        (200, r#"{"errors":[{"field":"custom_3","message":"too long"}]}"#, "rejected"),
        (200, r#"{"errors":["custnr already exists"]}"#, "duplicate"),
        (200, r#"{"errors":["Invalid access token"]}"#, "systemic"),
        (200, r#"{"errors":["Invalid username"]}"#, "systemic"),
        (200, r#"{"errors":[{"code":403,"message":"Access denied"}]}"#, "systemic"),
        (200, "", "uncertain"),
        (401, r#"{"errors":["Unauthorized"]}"#, "unauthorized"),
        (415, "Unsupported Media Type", "rejected"),
    ];
    let seven_targets = [
        (201, r#"{"id":1,"state":"New"}"#, "delivered"),
        (400, r#"{"message":"Lead already exists"}"#, "duplicate"),
        (400, r#""email is not valid""#, "rejected"),
        (401, r#"{"message":"Unauthorized"}"#, "unauthorized"),
        (403, r#"{"message":"Forbidden"}"#, "systemic"),
        (200, "<html>Log in</html>", "systemic"),
    ];
    for (preset, rows) in [
        ("squadrun", &squad[..]),
        ("squadiq", &squad),
        ("paya", &paya),
        ("paya-session", &paya),
        ("kaisa", &kaisa),
        ("7targets", &seven_targets),
        ("7targets-2024", &seven_targets),
    ] {
        let answers = Answers::of(&destination(preset)).expect("it compiles");
        for (status, body, expected) in rows {
            let outcome = answers.classify(&answered(*status, body), &Redactor::default());
            assert_eq!(outcome.as_str(), *expected, "{preset}: {status} {body}");
        }
    }
}

#[test]
fn only_the_contact_that_was_asked_for_is_proof_that_a_lead_arrived_at_paya() {
    let destination = destination("paya");
    let (answers, query) = (Answers::of(&destination).expect("it compiles"), Query::of(&destination));
    let query = query.expect("it compiles").expect("Paya can be asked");
    let contact = |location: &str, key: &str| {
        format!(r#"{{"contacts":[{{"id":"c-1","location_id":"{location}","contact_api_id":"{key}"}}]}}"#)
    };
    for (body, expected) in [
        (contact("loc-1", "k-1"), "reconciled"),
        (contact("loc-2", "k-1"), "absent"),
        (contact("loc-1", "k-2"), "absent"),
        (r#"{"contacts":[]}"#.to_owned(), "absent"),
        (r#"{"contacts":"none"}"#.to_owned(), "retry"),
        (r#"{"error":"no"}"#.to_owned(), "retry"),
        (String::new(), "retry"),
    ] {
        let outcome = query.classify(&answers, "k-1", &answered(200, &body), &Redactor::default());
        assert_eq!(outcome.as_str(), expected, "{body}");
    }
}
