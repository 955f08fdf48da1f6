//! The port: refusing, stopping, and two at once.

use super::*;

#[tokio::test]
async fn a_paused_sandbox_refuses_connections_and_a_resumed_one_has_the_same_port() {
    let sandbox = sandbox();
    let addr = sandbox.addr();
    let token = token(&sandbox).await;
    let mut open = Client::of(&sandbox).await;
    for _ in 0..3 {
        sandbox.pause_listening().await.unwrap();
        assert_eq!(TcpStream::connect(addr).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        sandbox.resume_listening().unwrap();
        assert_eq!(sandbox.addr(), addr);
        post(&sandbox, &token, "k", "ann@example.org").await;
    }
    assert_eq!(open.rest().await.0, b"");
    assert_eq!(sandbox.journal().created_count(), 1);
}

#[tokio::test]
async fn a_stopped_or_dropped_sandbox_refuses_connections() {
    let stopped = sandbox();
    stopped.stop().await;
    assert_eq!(TcpStream::connect(stopped.addr()).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(stopped.resume_listening().is_err());
    assert!(stopped.pause_listening().await.is_err());

    let dropped = sandbox();
    let mut open = Client::of(&dropped).await;
    drop(dropped);
    assert_eq!(open.rest().await.0, b"");
}

#[tokio::test]
async fn two_sandboxes_in_one_process_know_nothing_of_each_other() {
    let (one, other) = (sandbox(), sandbox());
    let token = token(&one).await;
    assert_eq!(post(&one, &token, "k", "ann@example.org").await.status, 201);
    assert_eq!(post(&other, &token, "k", "ann@example.org").await.status, 401);
    assert_eq!((one.journal().created_count(), other.journal().created_count()), (1, 0));
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_at_the_start() {
    let faults =
        FaultPlan { rates: Some(vec![Rate { probability: 2.0, fault: Fault::hang() }]), ..FaultPlan::default() };
    let error = Sandbox::start(SandboxSettings { faults, ..SandboxSettings::default() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
