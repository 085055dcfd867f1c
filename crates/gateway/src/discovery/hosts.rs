use std::net::IpAddr;

/// The addresses that a hosts file gives `name`, in its order.
pub(super) fn addresses(file: &str, name: &str) -> Vec<IpAddr> {
    let file = file.trim_start_matches('\u{feff}');
    let name = name.trim_end_matches('.');
    let mut found = Vec::new();
    for line in file.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        // One that is no address, such as `fe80::1%lo0`, is none to connect to.
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        if words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(name))
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_name_add_up() {
        let file = "\u{feff}127.0.0.1\tlocalhost\n::1 localhost ip6-localhost # 10.9.9.9 llm\n#10.9.9.9 llm\n\
            10.0.0.5  llm LLM.internal gpu_5\n\n10.0.0.6 other llm.\nfd00::5 llm\n10.0.0.5 llm\nnonsense llm\n\
            fe80::1%lo0 llm\n10.0.0.7\n";
        let check = |name: &str, expected: &[&str]| {
            let expected: Vec<IpAddr> = expected.iter().map(|it| it.parse().unwrap()).collect();
            assert_eq!(addresses(file, name), expected, "{name}");
        };
        check("llm", &["10.0.0.5", "10.0.0.6", "fd00::5"]);
        check("Llm.", &["10.0.0.5", "10.0.0.6", "fd00::5"]);
        check("llm.internal", &["10.0.0.5"]);
        check("gpu_5", &["10.0.0.5"]);
        check("localhost", &["127.0.0.1", "::1"]);
        check("10.0.0.7", &[]);
        check("internal", &[]);
    }
}
