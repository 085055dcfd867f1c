use super::*;

fn simulated(case: &str, runs: u64) -> CaseResult {
    let options = Options { runs, seed: 1, case: Some(case.to_owned()) };
    run(&options, &|_, _| {}).unwrap().cases.remove(0)
}

fn rule<'a>(case: &'a CaseResult, name: &str) -> &'a RuleResult {
    case.rules.iter().find(|rule| rule.rule == name).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_results() {
    let of = |seed| {
        let options = Options { runs: 40, seed, case: Some("errors-5".to_owned()) };
        run(&options, &|_, _| {}).unwrap()
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1).cases, of(2).cases);
}

#[test]
fn a_dead_canary_is_sent_back_by_everybody_and_first_by_ours() {
    let case = simulated("dead", 100);
    assert!(case.rules.iter().all(|rule| rule.rolled_back.count == rule.runs), "{case:?}");
    let requests = |name| rule(&case, name).canary_requests.unwrap().median;
    assert!(
        requests(OURS) <= 10.0 && OTHERS.iter().all(|other| requests(OURS) < requests(other)),
        "{case:?}"
    );
}

#[test]
fn an_incident_of_both_is_blamed_on_the_canary_only_by_others() {
    let case = simulated("incident", 100);
    assert!(rule(&case, OURS).rolled_back.count <= 3, "{case:?}");
    assert!(rule(&case, "Argo 99 %").rolled_back.share > 0.9, "{case:?}");
}

#[test]
fn without_traffic_ours_waits() {
    let case = simulated("vanishing", 50);
    assert!(rule(&case, OURS).held >= 49, "{case:?}");
    assert!(rule(&case, "Flagger").rolled_back.count == 5, "{case:?}");
}

#[test]
fn what_can_not_be_simulated_is_refused() {
    let error = |runs, case: Option<&str>| {
        let options = Options { runs, seed: 1, case: case.map(str::to_owned) };
        run(&options, &|_, _| {}).unwrap_err().to_string()
    };
    assert_eq!(error(0, None), "0 runs say nothing");
    assert!(error(1, Some("nothing")).starts_with("there is no case `nothing`\nhint: same, same-100, "));
}

#[test]
fn progress_ends_when_all_is_done() {
    let last = std::sync::Mutex::new((0, 0));
    let options = Options { runs: 20, seed: 1, case: Some("errors-20".to_owned()) };
    run(&options, &|done, total| {
        let mut last = last.lock().unwrap();
        *last = (last.0.max(done), total);
    })
    .unwrap();
    assert_eq!(*last.lock().unwrap(), (2, 2));
}

#[test]
fn the_page_has_every_case_and_its_pictures() {
    let options = Options { runs: 20, seed: 1, case: Some("latency-2".to_owned()) };
    let results = run(&options, &|_, _| {}).unwrap();
    let page = page(&results);
    assert!(page.contains("| latency-2: the canary takes twice as long |"), "{page}");
    assert!(page.contains("`latency-2`: requests of the canary until it is sent back | ≤ 90 |"), "{page}");
    let plots = plots(&results).unwrap();
    assert_eq!(plots.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["decision-exposure.svg"]);
    assert!(plots[0].1.contains("latency-2") && plots[0].1.contains(OURS));
}
