//! Each fault, as a client sees it and as the journal notes it.

use super::*;

/// Sends a lead into a fault and returns what came back until the end of the connection.
async fn met(sandbox: &Sandbox, fault: Fault) -> (Vec<u8>, Result<(), ErrorKind>) {
    let token = token(sandbox).await;
    sandbox.faults().script([fault]);
    let mut client = send_lead(sandbox, &token, "k", "ann@example.org").await;
    client.rest().await
}

/// The status, the effect and the fault of the one post.
fn noted(sandbox: &Sandbox) -> (Option<u16>, Effect, Option<&'static str>) {
    let posts = sandbox.journal().posts();
    assert_eq!(posts.len(), 1);
    (posts[0].status, posts[0].effect, posts[0].fault)
}

#[tokio::test]
async fn resets_are_resets_and_not_orderly_ends() {
    for (fault, name) in [(Fault::reset_early(), "reset_early"), (Fault::reset(), "reset")] {
        let sandbox = sandbox();
        assert_eq!(met(&sandbox, fault).await, (vec![], Err(ErrorKind::ConnectionReset)));
        assert_eq!(noted(&sandbox), (None, Effect::Nothing, Some(name)));
    }
}

#[tokio::test]
async fn an_early_reset_strikes_before_the_body_has_come() {
    let sandbox = sandbox();
    sandbox.faults().script([Fault::reset_early()]);
    let mut client = Client::of(&sandbox).await;
    client.stream.write_all(b"POST /leads HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n").await.unwrap();
    assert_eq!(client.rest().await.1, Err(ErrorKind::ConnectionReset));
    assert_eq!(sandbox.journal().posts()[0].body_hash, None);
}

#[tokio::test]
async fn a_close_is_an_orderly_end_without_an_answer() {
    let sandbox = sandbox();
    assert_eq!(met(&sandbox, Fault::close()).await, (vec![], Ok(())));
    assert_eq!(noted(&sandbox), (None, Effect::Nothing, Some("close")));
}

#[tokio::test]
async fn after_means_that_the_lead_exists_although_the_client_cannot_know() {
    for fault in [Fault::reset(), Fault::close()] {
        let sandbox = sandbox();
        assert_eq!(met(&sandbox, fault.after()).await.0, b"");
        assert_eq!(noted(&sandbox).1, Effect::Created);
        let token = token(&sandbox).await;
        assert_eq!(post(&sandbox, &token, "k", "ann@example.org").await.status, 409);
    }
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    sandbox.faults().script([Fault::status(502).after()]);
    assert_eq!(post(&sandbox, &token, "k", "ann@example.org").await.status, 502);
    assert_eq!(noted(&sandbox), (Some(502), Effect::Created, Some("status")));
}

#[tokio::test]
async fn a_cut_sends_exactly_the_part_it_is_named_after() {
    for (at, status) in [(CutAt::StatusLine, None), (CutAt::Headers, Some(201)), (CutAt::Body, Some(201))] {
        let sandbox = sandbox();
        let (bytes, end) = met(&sandbox, Fault::cut(at)).await;
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(end, Ok(()));
        assert_eq!(noted(&sandbox), (status, Effect::Created, Some("cut")));
        assert_eq!(text.starts_with("HTTP/1.1 201 Created\r\n"), at != CutAt::StatusLine, "{text}");
        assert_eq!(text.contains("\r\n\r\n{\"id\":"), at == CutAt::Body, "{text}");
        assert!(!text.ends_with('}'), "{text}");
    }
    let (bytes, _) = met(&sandbox(), Fault::cut(CutAt::Bytes(5)).before()).await;
    assert_eq!(bytes, b"HTTP/");
}

#[tokio::test]
async fn a_hang_lasts_until_the_client_leaves() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    sandbox.faults().script([Fault::hang().after()]);
    let client = send_lead(&sandbox, &token, "k", "ann@example.org").await;
    sandbox.journal().wait_for(|pages| pages.counts().created == 1, SOON).await.unwrap();
    assert_eq!(sandbox.journal().posts()[0].ended, None);
    drop(client);
    sandbox.journal().wait_for(|pages| pages.counts().unanswered == 1, SOON).await.unwrap();
    assert_eq!(noted(&sandbox), (None, Effect::Created, Some("hang")));
}

#[tokio::test]
async fn a_hang_ends_when_the_sandbox_stops() {
    let sandbox = sandbox();
    sandbox.faults().script([Fault::hang()]);
    let mut client = send_lead(&sandbox, "none", "k", "ann@example.org").await;
    sandbox.journal().wait_for(|pages| pages.counts().in_flight == 1, SOON).await.unwrap();
    sandbox.stop().await;
    assert_eq!(client.rest().await.0, b"");
    assert_eq!(sandbox.journal().counts().in_flight, 0);
}

#[tokio::test]
async fn a_status_comes_with_the_retry_after_and_the_body_it_was_given() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    let html = StatusAnswer {
        body: Some("<h1>Bad Gateway</h1>".to_owned()),
        content_type: Some("text/html".to_owned()),
        retry_after: Some(RetryAfter::Date { date_in_s: 60 }),
        ..StatusAnswer::new(502)
    };
    sandbox.faults().script([Fault::retry_after(429, 3), Fault::answer(html)]);
    let seen = post(&sandbox, &token, "k", "ann@example.org").await;
    assert_eq!((seen.status, seen.header("retry-after")), (429, Some("3")));
    assert_eq!(seen.json(), json!({"message":"Too Many Requests"}));
    let seen = post(&sandbox, &token, "k", "ann@example.org").await;
    assert_eq!((seen.status, seen.header("content-type")), (502, Some("text/html")));
    assert_eq!(seen.body, b"<h1>Bad Gateway</h1>");
    assert!(httpdate::parse_http_date(seen.header("retry-after").unwrap()).is_ok());
}

#[tokio::test]
async fn a_redirect_leads_to_a_page_that_says_200() {
    let sandbox = sandbox();
    sandbox.faults().script([Fault::redirect()]);
    let mut client = send_lead(&sandbox, "none", "k", "ann@example.org").await;
    let seen = client.receive().await;
    assert_eq!(seen.status, 302);
    let page = client.ask("GET", seen.header("location").unwrap(), "").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(sandbox.journal().counts().other_requests, 1);
}

#[tokio::test]
async fn a_huge_body_has_the_length_that_was_asked_for() {
    let sandbox = sandbox();
    sandbox.faults().script([Fault::huge(201, 3_000_000)]);
    let mut client = send_lead(&sandbox, "none", "k", "ann@example.org").await;
    let seen = client.receive().await;
    assert_eq!((seen.status, seen.body.len()), (201, 3_000_000));

    let chunked: Fault = serde_json::from_value(json!({"kind":"huge","bytes":100_000,"chunked":true})).unwrap();
    sandbox.faults().script([chunked]);
    client.send("POST", "/leads", "connection: close\r\n", "{}").await;
    let (bytes, _) = client.rest().await;
    assert_eq!(bytes.iter().filter(|byte| **byte == b'x').count(), 100_000);
}

#[tokio::test]
async fn a_drip_sends_one_byte_per_interval() {
    let sandbox = sandbox();
    let (every, began) = (Duration::from_millis(1), std::time::Instant::now());
    let (bytes, end) = met(&sandbox, Fault::drip(every, DripFrom::Head)).await;
    assert_eq!(end, Ok(()));
    assert!(bytes.ends_with(b"}"));
    assert!(began.elapsed() >= every * u32::try_from(bytes.len()).unwrap());
    assert_eq!(noted(&sandbox), (Some(201), Effect::Created, Some("drip")));
}

#[tokio::test]
async fn a_drip_from_the_body_sends_the_head_at_once() {
    let sandbox = sandbox();
    sandbox.faults().script([Fault::drip(Duration::from_secs(3600), DripFrom::Body)]);
    let mut client = send_lead(&sandbox, "none", "k", "ann@example.org").await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.stream.read_u8().await.unwrap());
    }
    let more = tokio::time::timeout(Duration::from_millis(20), client.stream.read_u8()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_latency_delays_the_usual_answer() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    sandbox.faults().script([Fault::latency(Duration::from_millis(30))]);
    let began = std::time::Instant::now();
    assert_eq!(post(&sandbox, &token, "k", "ann@example.org").await.status, 201);
    assert!(began.elapsed() >= Duration::from_millis(30));
    assert_eq!(noted(&sandbox), (Some(201), Effect::Created, Some("latency")));
}

#[tokio::test]
async fn faults_on_the_token_endpoint_leave_leads_alone() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    sandbox.faults().script([Fault::status(503).on_token()]);
    assert_eq!(post(&sandbox, &token, "k", "ann@example.org").await.status, 201);
    let mut client = Client::of(&sandbox).await;
    client.send("POST", "/oauth2/token", FORM, GRANT).await;
    assert_eq!(client.receive().await.status, 503);
    assert_eq!(sandbox.script_left(), 0);
}

#[tokio::test]
async fn a_lead_under_a_rule_meets_its_fault_so_many_times_and_then_passes() {
    let sandbox = sandbox();
    let token = token(&sandbox).await;
    sandbox.faults().rule("+flaky", Some(2), Fault::status(503));
    let mut statuses = Vec::new();
    for email in ["a+flaky@x.io", "a+flaky@x.io", "b@x.io", "a+flaky@x.io"] {
        statuses.push(post(&sandbox, &token, email, email).await.status);
    }
    assert_eq!(statuses, [503, 503, 201, 201]);
}
