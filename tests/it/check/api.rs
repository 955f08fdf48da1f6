//! The token endpoint and the lead API: who is there, and what time it is there.

use std::time::{Duration, SystemTime};

use leadpost::sandbox::Fault;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{Report, nowhere, recommended};
use crate::support::tls::{Speech, Tls};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_and_an_endpoint_that_is_away_are_told_apart() {
    let world = recommended().await;
    let wrong = [("LEADPOST__DESTINATION__AUTH__CLIENT_SECRET", "hunter2")];
    let report = Report::of(&world, &wrong).await;
    report.only("token", "failed", "the token endpoint refuses us", "check destination.auth");
    assert_eq!((report.code, report.status("api.reach")), (Some(1), "ok"));
    assert!(!report.said.contains("hunter2"), "{}", report.said);

    world.sandbox.faults().script([Fault::status(503).on_token()]);
    let report = Report::of(&world, &[]).await;
    report.only("token", "failed", "503", "see its status page");
    assert_eq!(report.code, Some(1), "it is there, and does not work");

    let away = format!("http://{}/oauth2/token", nowhere().await);
    let report = Report::of(&world, &[("LEADPOST__DESTINATION__AUTH__TOKEN_URL", &away)]).await;
    report.only("token", "failed", "could not connect", "destination.auth.token_url");
    assert_eq!((report.code, report.status("token.clock")), (Some(69), "skipped"));
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_without_a_log_in_is_reached_and_says_so() {
    let mut world = recommended().await;
    world.set(&[("AUTH__KIND", "bearer"), ("AUTH__BEARER_TOKEN", "hunter2")]);
    world.destination.retain(|(name, _)| !name.contains("CLIENT_") && !name.contains("TOKEN_URL"));
    let report = Report::of(&world, &[]).await;
    assert_eq!((report.code, report.troubles()), (Some(0), vec![]), "{}", report.said);
    let token = report.get("token");
    assert!(token["status"] == "skipped" && token["found"].as_str().unwrap().contains("bearer"), "{token}");
    assert_eq!((report.status("token.clock"), report.status("api.reach")), ("skipped", "ok"));
    assert_eq!(world.sandbox.journal().tokens_issued(), 0);
    world.clear().await;
}

/// A port that gives every connection this answer.
async fn answering(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                drop(stream.read(&mut [0; 4096]).await);
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            });
        }
    });
    format!("http://{at}/leads")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_answers_to_a_question_for_nothing_is_weighed() {
    let world = recommended().await;
    let url = "LEADPOST__DESTINATION__REQUEST__URL";
    let away = format!("http://{}/leads", nowhere().await);
    let report = Report::of(&world, &[(url, &away)]).await;
    report.only("api.reach", "failed", "could not connect", "destination.request.url");
    report.skipped("api.clock", "api.reach");
    assert_eq!((report.code, report.status("token")), (Some(69), "ok"));

    let an_hour_ago = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(3600));
    let head = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n");
    let skewed = answering(format!("{}date: {an_hour_ago}\r\n\r\n", head("405 No"))).await;
    let report = Report::of(&world, &[(url, &skewed)]).await;
    report.only("api.clock", "warning", "60 min behind", "NTP");
    assert_eq!((report.code, report.status("api.reach")), (Some(0), "ok"), "any answer shows that somebody is there");

    for (status, found, fix) in
        [("503 Busy", "in trouble", "status page"), ("302 Found", "a redirect", "where it leads")]
    {
        let port = answering(head(status) + "\r\n").await;
        let report = Report::of(&world, &[(url, &port)]).await;
        report.only("api.reach", "warning", found, fix);
        assert_eq!(report.status("api.clock"), "skipped");
    }
    let port = answering(head("501 Not Implemented") + "\r\n").await;
    assert_eq!(
        Report::of(&world, &[(url, &port)]).await.troubles(),
        Vec::<&str>::new(),
        "who does not speak OPTIONS is there"
    );
    let tls = skewed.replace("http://", "https://");
    let report = Report::of(&world, &[(url, &tls)]).await;
    report.only(
        "api.reach",
        "failed",
        "could not connect",
        "does not speak TLS: check scheme and port of destination.request.url",
    );
    assert_eq!(report.code, Some(1));
    assert_eq!(world.sandbox.journal().counts().posts, 0);
    world.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_that_is_wrong_is_told_from_an_api_that_is_away_and_names_what_to_look_at() {
    let world = recommended().await;
    let tls = Tls::open();
    let (url, roots) = (tls.url("https", "/leads"), tls.roots());
    let environment =
        [("LEADPOST__DESTINATION__REQUEST__URL", url.as_str()), ("SSL_CERT_FILE", roots.to_str().unwrap())];
    for (speech, found, fix) in [
        (Speech::SelfSigned, "UnknownIssuer", "SSL_CERT_FILE"),
        (Speech::Expired, "expired", "SSL_CERT_FILE"),
        (Speech::OfAnother, "not valid for name", "the name in destination.request.url"),
        (Speech::Plain, "InvalidContentType", "does not speak TLS"),
    ] {
        tls.speak(speech);
        let report = Report::of(&world, &environment).await;
        report.only("api.reach", "failed", found, fix);
        assert_eq!(report.code, Some(1), "{}", report.said);
    }
    assert!(tls.requests().is_empty(), "nothing is said to whom is not trusted");
    tls.speak(Speech::Well);
    let report = Report::of(&world, &environment).await;
    assert_eq!((report.code, report.status("api.reach")), (Some(0), "ok"), "{}", report.said);
    let requests = tls.requests();
    assert!(requests.len() == 1 && requests[0].starts_with("OPTIONS "), "{requests:?}");
    world.clear().await;
}
