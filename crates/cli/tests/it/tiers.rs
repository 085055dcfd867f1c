//! Work that has moved to a standby stays there over the end of a process.

use backstop_engine_sim::{Fault, Sim};

use crate::backstop::{Backstop, config, sim};
use crate::client::{chat, until};

fn manual(sims: &[&Sim]) -> String {
    let second = format!("url: \"{}\", engine: sim", sims[1].url());
    config(sims).replace(&second, &format!("{second}, priority: 1"))
        + "    failover: { failback: manual, stable_for: 50ms, ramp: [100%] }\n"
}

/// Which engine answers now.
async fn answers(backstop: &Backstop, sims: [&Sim; 2]) -> usize {
    let before = sims.map(|sim| sim.stats().requests);
    assert_eq!(chat(backstop.addr, false).await.status, 200);
    let after = sims.map(|sim| sim.stats().requests);
    usize::from(after[1] > before[1])
}

#[tokio::test]
async fn neither_a_crash_nor_an_upgrade_fails_back() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = Backstop::serve(&manual(&[&first, &second]), &[]).await;
    backstop.ready().await;
    until("both are checked", || backstop.text().matches("\"to\":\"healthy\"").count() == 2).await;
    assert_eq!(answers(&backstop, [&first, &second]).await, 0);
    let none = backstop.ask(&["failback", "chat"], "");
    assert_eq!(none.code, Some(1));
    assert!(none.err.contains("nothing of `chat` has moved to a standby"), "{}", none.err);

    first.set_fault(Fault::Health { status: 503 });
    let kept = backstop.directory.0.join("state/tiers.json");
    until("kept", || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("\"chat\""))).await;
    first.clear_faults();
    backstop.kill_and_restart().await;
    backstop.ready().await;
    until("both are well", || backstop.text().matches("\"to\":\"healthy\"").count() == 2).await;
    for _ in 0..5 {
        assert_eq!(answers(&backstop, [&first, &second]).await, 1);
    }
    assert_eq!(
        backstop.order(&["failback", "chat"]),
        "chat: priority 0 of version `v1` gets its work back\n"
    );
    while answers(&backstop, [&first, &second]).await != 0 {}
    until("kept", || std::fs::read_to_string(&kept).is_ok_and(|text| !text.contains("\"chat\""))).await;

    // What can't be read is no reason not to serve.
    std::fs::write(&kept, "{").unwrap();
    backstop.kill_and_restart().await;
    backstop.ready().await;
    assert!(backstop.logged("which tiers had moved to a standby is not known"), "{}", backstop.text());
}
