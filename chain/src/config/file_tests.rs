use super::*;
use topics::Address;

fn parse(text: &str) -> Result<Vec<Chain>, String> {
    let file = ChainsFile::parse(Path::new("chains.yaml"), text).map_err(|error| error.to_string())?;
    Ok(file
        .entries
        .into_iter()
        .map(|entry| {
            let id = entry.chain_id.unwrap_or(ChainId(424_242));
            entry.into_chain(id)
        })
        .collect())
}

const WHOLE: &str = "
- name: ethereum
  chain_id: 1
  rpc_urls: [https://one.example/key, https://two.example]
  ws_urls: [wss://one.example]
  witnesses: 1
  poa: false
  finality: finalized
  start_block: 17686110
  poll_interval_ms: 250
  max_lag_s: 90
  verify: roots
  traces: true
  treasury: '0x7777777777777777777777777777777777777777'
  sweep_at: finalized
  max_fee: 12.5
  sweep_minimum: 0.02
  l1_fee: 0.0001
  tokens:
    - { symbol: USDC, address: 0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48, decimals: 6 }
    - symbol: USDT
      address: '0xdac17f958d2ee523a2206206994597c13d831ec7'
      decimals: 6
- name: mine
  rpc_url: http://127.0.0.1:8545
";

#[test]
fn every_key_arrives_and_presets_fill_the_rest() {
    let chains = parse(WHOLE).unwrap();
    let [ethereum, mine] = &chains[..] else { panic!("{chains:?}") };
    assert_eq!((ethereum.id, ethereum.policy, ethereum.start_block), (ChainId(1), Policy::Finalized, Some(17_686_110)));
    assert_eq!((ethereum.rpc_urls.len(), ethereum.ws_urls.len(), ethereum.witnesses), (2, 1, 1));
    assert_eq!((ethereum.max_lag, mine.max_lag), (Some(Duration::from_secs(90)), Some(Duration::from_secs(1800))));
    assert_eq!((ethereum.poll_interval, ethereum.verify, ethereum.traces), (Duration::from_millis(250), Verify::Roots, true));
    assert_eq!(
        ethereum.token_by_symbol("usdt").unwrap().id(ethereum.id),
        "eip155:1/erc20:0xdAC17F958D2ee523a2206206994597C13D831ec7"
    );
    assert_eq!((mine.policy, mine.verify, mine.start_block), (Policy::Confirmations(32), Verify::Auto, None));

    let treasury = Some(Address::repeat_byte(0x77));
    let (max_fee, minimum, l1_fee) = (12_500_000_000, Amount::from_decimal("0.02", 18), Amount::from(100_000_000_000_000));
    let sweeping = Sweeping { treasury, at: SweepAt::Finalized, max_fee, minimum, l1_fee };
    assert_eq!(ethereum.sweeping, sweeping);
    assert_eq!(
        mine.sweeping,
        Sweeping { max_fee: 100_000_000_000, ..Sweeping::default() },
        "nothing is swept without a treasury"
    );

    let under_a_key = format!("chains:\n{}", WHOLE.trim_start_matches('\n'));
    assert_eq!(parse(&under_a_key).unwrap().len(), 2);
    let anvil = parse("- {name: anvil, chain_id: 31337, rpc_url: http://127.0.0.1:8545, tokens: }").unwrap();
    assert_eq!((anvil[0].policy, anvil[0].poll_interval), (Policy::Confirmations(3), Duration::from_millis(20)));
    assert_eq!(anvil[0].max_lag, None, "it mines when it is asked to");
}

#[test]
fn the_least_transfer_is_in_whole_coins_and_tokens_and_known_tokens_have_a_preset() {
    let tokens = "  tokens:
    - { symbol: USDC, address: 0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48, decimals: 6 }
    - { symbol: USDT, address: 0xdAC17F958D2ee523a2206206994597C13D831ec7, decimals: 6, min_transfer: 0 }
    - { symbol: X, address: 0x7777777777777777777777777777777777777777, decimals: 2, min_transfer: 1.5 }
    - { symbol: Y, address: 0x7777777777777777777777777777777777777778, decimals: 2 }";
    let chain =
        |rest: &str| parse(&format!("- name: a\n  chain_id: 1\n  rpc_url: http://a\n{rest}{tokens}")).unwrap().remove(0);
    let given = chain("  min_transfer: 0.000000000000000007\n");
    let least = |symbol: &str| given.min_transfer_of(given.token_by_symbol(symbol).map(|token| token.address)).to_string();
    assert_eq!(["USDC", "USDT", "X", "Y"].map(least), ["10000", "0", "150", "0"]);
    assert_eq!(given.min_transfer_of(None), topics::Amount::from(7));
    assert_eq!(chain("").min_transfer_of(None), topics::Amount::ZERO);
    assert_eq!(chain("").min_transfer_of(Some(Address::repeat_byte(1))), topics::Amount::ZERO);
}

/// Each mistake, with its line and what the message must contain.
#[test]
fn a_mistake_is_refused_with_its_line_its_key_and_what_was_expected() {
    let token = |rest: &str| format!("- name: a\n  chain_id: 1\n  rpc_url: http://a\n  tokens:\n{rest}");
    let usdc = "    - symbol: USDC\n      address: 0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48\n      decimals: 6\n";
    let cases: Vec<(String, usize, &[&str])> = vec![
        ("chains: 5".into(), 1, &["chains", "expected"]),
        ("[]".into(), 1, &["at least one chain"]),
        ("- name: a\n  rpc_url: http://a\n  confirmatons: 3".into(), 3, &["confirmatons", "expected one of", "confirmations"]),
        ("- name: a\n  rpc_url: http://a\n  confirmations: many".into(), 3, &["confirmations", "expected"]),
        ("- name: a\n  rpc_url: http://a\n  confirmations: 0".into(), 3, &["confirmations", "above 0"]),
        ("- name: a\n  rpc_url: http://a\n  chain_id: -1".into(), 3, &["chain_id", "expected"]),
        ("- name: a\n  rpc_url: http://a\n  max_lag_s: 0".into(), 3, &["max_lag_s", "expected"]),
        ("- name: a\n  rpc_url: http://a\n  finality: soon".into(), 3, &["finality", "safe", "finalized"]),
        ("- name: a\n  rpc_url: http://a\n  verify: yes".into(), 3, &["verify", "auto", "roots", "bloom", "off"]),
        ("- name: a\n  rpc_url: ftp://a".into(), 2, &["rpc_url", "expected http"]),
        ("- name: a\n  rpc_url: https://x/${CTRIP_NO_SUCH}".into(), 2, &["rpc_url", "CTRIP_NO_SUCH is not set"]),
        ("- name: a\n  rpc_urls:\n  - http://a\n  - nonsense".into(), 4, &["rpc_urls", "expected a URL"]),
        ("- name: a\n  rpc_url: http://a\n  ws_urls: [http://a]".into(), 3, &["ws_urls", "expected ws"]),
        ("- name: a\n  rpc_url: http://a\n  witnesses: 0".into(), 3, &["witnesses", "above 0"]),
        ("- name: a\n  rpc_urls: [http://a/1, http://a/2]\n  witnesses: 2".into(), 1, &["witnesses: 2", "at most 1"]),
        (
            "- name: a\n  rpc_urls:\n  - http://a\n  - { url: http://b, grup: x }".into(),
            4,
            &["rpc_urls", "grup", "expected `url` or `group`"],
        ),
        ("- name: a\n  rpc_urls:\n  - http://a\n  - { url: ftp://b }".into(), 4, &["url", "expected http"]),
        ("- name: ''\n  rpc_url: http://a".into(), 1, &["name", "expected"]),
        ("- rpc_url: http://a".into(), 1, &["missing field `name`"]),
        ("- name: a".into(), 1, &["rpc_url is missing"]),
        ("- name: a\n  rpc_url: http://a\n  rpc_urls: [http://b]".into(), 1, &["rpc_url and rpc_urls", "one of them"]),
        ("- name: a\n  rpc_url: http://a\n  confirmations: 1\n  finality: safe".into(), 1, &["confirmations and finality"]),
        ("- name: a\n  rpc_url: http://a\n- name: a\n  rpc_url: http://b".into(), 3, &["name", "\"a\" already"]),
        (
            "- name: a\n  chain_id: 5\n  rpc_url: http://a\n- name: b\n  chain_id: 5\n  rpc_url: http://b".into(),
            4,
            &["chain_id", "5 is the chain \"a\""],
        ),
        ("- name: a\n  name: b\n  rpc_url: http://b".into(), 2, &["chain a: duplicate key name"]),
        ("- rpc_url: http://a\n- name: b\n  rpc_url: http://b".into(), 1, &["chain number 1: missing field `name`"]),
        ("- name: a\n  rpc_url: http://a\n- name: b\n  rpc_url: http://b\n  poa: 7".into(), 5, &["chain b: poa: "]),
        ("chains:\n- name: b\n  rpc_url: http://b\n  poa: true\n  tokens:\n  poa: false".into(), 6, &["duplicate key poa"]),
        ("chains:\n- {name: a, rpc_url: 'http://a'}\nchains:\n- {name: b}".into(), 3, &["duplicate key chains"]),
        (token(&format!("{usdc}      decimals: 6")), 8, &["duplicate key decimals"]),
        ("- name: a\n  rpc_url: http://a\n  tiers:\n  - from: 1\n    from: 2".into(), 5, &["duplicate key from"]),
        ("- name: a\n  rpc_url: http://a\n  tiers: [5]".into(), 3, &["chain a: tiers[0]", "expected a tier"]),
        ("- name: a\n  rpc_url: http://a\n  start_block: -1".into(), 3, &["start_block", "a whole number"]),
        (token("    - symbol: USDC\n      address: 0x1234\n      decimals: 6"), 6, &["address", "40 hex digits"]),
        (
            token("    - symbol: USDC\n      address: 0xa0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48\n      decimals: 6"),
            6,
            &["address", "checksum"],
        ),
        (
            token("    - symbol: USDC\n      address: 0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48\n      decimals: 300"),
            7,
            &["chain a: tokens[0].decimals", "from 0 to 255"],
        ),
        (
            token("    - symbol: US DC\n      address: 0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48\n      decimals: 6"),
            5,
            &["symbol", "expected"],
        ),
        (
            token(&format!(
                "{usdc}    - symbol: usdc\n      address: 0xdac17f958d2ee523a2206206994597c13d831ec7\n      decimals: 6"
            )),
            8,
            &["symbol", "once"],
        ),
        (
            token(&format!(
                "{usdc}    - symbol: USDX\n      address: 0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48\n      decimals: 6"
            )),
            8,
            &["address", "as USDC"],
        ),
        (
            "- name: a\n  rpc_url: http://a\n  tiers:\n  - from: 1,5\n    confirmations: 3".into(),
            4,
            &["tiers", "from", "like 1.5", "1,5"],
        ),
        ("- name: a\n  rpc_url: http://a\n  min_transfer: 1e3".into(), 3, &["min_transfer", "1e3"]),
        ("- name: a\n  rpc_url: http://a\n  tiers: [{ from: -1, confirmations: 3 }]".into(), 3, &["from", "-1"]),
        ("- name: a\n  rpc_url: http://a\n  tiers: [{ from: 1e3, confirmations: 3 }]".into(), 3, &["from", "1e3"]),
        ("- name: a\n  rpc_url: http://a\n  tiers: [{ from: 1., confirmations: 3 }]".into(), 3, &["from", "1."]),
        ("- name: a\n  rpc_url: http://a\n  tiers: [{ from: 1, confirmations: 0 }]".into(), 3, &["confirmations", "above 0"]),
        ("- name: a\n  rpc_url: http://a\n  tiers: [{ from: 1, count: 3 }]".into(), 3, &["count", "expected one of"]),
        ("- name: a\n  rpc_url: http://a\n  tiers: [{ from: 1.5 }]".into(), 1, &["from 1.5", "confirmations is missing"]),
        (
            "- name: a\n  rpc_url: http://a\n  tiers: [{ from: 1.5, confirmations: 3, finality: safe }]".into(),
            1,
            &["from 1.5", "both given"],
        ),
        (
            "- name: a\n  rpc_url: http://a\n  tiers: [{ from: 1.5, confirmations: 3 }, { from: '1.50', finality: safe }]"
                .into(),
            1,
            &["two begin at 1.5"],
        ),
        (
            token(&format!("{usdc}      tiers: [{{ from: 0.0000001, confirmations: 3 }}]")),
            5,
            &["from 0.0000001", "at most 6 digits"],
        ),
        ("- name: a\n  rpc_url: http://a\n  treasury: 0x1234".into(), 3, &["treasury", "40 hex digits"]),
        (
            "- name: a\n  rpc_url: http://a\n  treasury: 0xa0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48".into(),
            3,
            &["treasury", "checksum"],
        ),
        (
            "- name: a\n  rpc_url: http://a\n  treasury: 0x0000000000000000000000000000000000000000".into(),
            3,
            &["treasury", "is gone"],
        ),
        (
            "- name: a\n  rpc_url: http://a\n  treasury: 0x471ece3750da237f93b8e339c536989b8978a438".into(),
            3,
            &["treasury", "a wallet of yours"],
        ),
        (
            format!("{}  treasury: 0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", token(usdc)),
            1,
            &["treasury", "the contract of USDC"],
        ),
        ("- name: a\n  rpc_url: http://a\n  sweep_at: safe".into(), 3, &["sweep_at", "confirmed", "finalized"]),
        ("- name: a\n  rpc_url: http://a\n  max_fee: 0".into(), 1, &["max_fee", "gwei above 0"]),
        ("- name: a\n  rpc_url: http://a\n  max_fee: 1.0000000001".into(), 1, &["max_fee", "at most 9 digits"]),
        ("- name: a\n  rpc_url: http://a\n  max_fee: 2e9".into(), 3, &["max_fee", "2e9"]),
        ("- name: a\n  rpc_url: http://a\n  max_fee: 20000000000".into(), 1, &["max_fee is in gwei", "1000000 at most"]),
        ("- name: a\n  rpc_url: http://a\n  sweep_minimum: 1,5".into(), 3, &["sweep_minimum", "1,5"]),
        ("- name: [".into(), 1, &["name"]),
    ];
    for (text, line, parts) in cases {
        let error = parse(&text).expect_err(&text);
        let types = ["u8", "u32", "u64", "nonzero", "struct ", "Raw"];
        assert!(!types.iter().any(|name| error.contains(name)), "a type of Rust: {error}");
        assert!(error.starts_with(&format!("chains.yaml:{line}:")), "line {line} of\n{text}\n{error}");
        for part in parts {
            assert!(error.contains(part), "{part:?} in {error:?}\nof\n{text}");
        }
    }
}

#[test]
fn as_many_witnesses_are_asked_as_there_are_providers_and_two_at_most() {
    let witnesses = |urls: &str| {
        let chain = parse(&format!("- name: a\n  rpc_urls: [{urls}]")).unwrap().remove(0);
        (chain.witnesses, chain.providers().len(), chain.unwitnessed().is_some())
    };
    assert_eq!(witnesses("http://a"), (1, 1, true));
    assert_eq!(witnesses("http://a/one, http://a/two"), (1, 1, true), "one host is one witness, whatever the key");
    assert_eq!(witnesses("http://a:1, http://a:2"), (2, 2, false));
    assert_eq!(witnesses("http://a, http://b, http://c"), (2, 3, false));
    assert_eq!(witnesses("{ url: http://a, group: x }, { url: http://b, group: x }, http://c"), (2, 2, false));
    assert_eq!(witnesses("{ url: http://a, group: x }, { url: http://b, group: x }"), (1, 1, true));
}

#[test]
fn the_highest_tier_that_does_not_begin_above_the_amount_decides() {
    let text = "
- name: a
  chain_id: 1
  rpc_url: http://a
  confirmations: 12
  tiers: [{ from: '100', finality: finalized }, { from: 1.5, confirmations: 30 }]
  tokens:
    - { symbol: X, address: '0xdac17f958d2ee523a2206206994597c13d831ec7', decimals: 6, tiers: [{ from: 0.000001, finality: safe }] }
    - { symbol: Y, address: '0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48', decimals: 6 }
";
    let chain = &parse(text).unwrap()[0];
    let coin = |amount: &str| chain.policy_for(None, amount.parse().unwrap());
    assert_eq!(coin("1499999999999999999"), Policy::Confirmations(12));
    assert_eq!(coin("1500000000000000000"), Policy::Confirmations(30));
    assert_eq!(coin("99999999999999999999"), Policy::Confirmations(30));
    assert_eq!(coin("100000000000000000000"), Policy::Finalized);
    let token = |symbol| chain.token_by_symbol(symbol).unwrap().address;
    assert_eq!(chain.policy_for(Some(token("X")), 1.into()), Policy::Safe);
    assert_eq!(chain.policy_for(Some(token("Y")), u64::MAX.into()), Policy::Confirmations(12));
    assert_eq!(chain.policy_for(Some(Address::ZERO), u64::MAX.into()), Policy::Confirmations(12));
}

#[test]
fn a_mirror_of_the_coin_is_no_token() {
    for mirror in [
        "0x0000000000000000000000000000000000001010",
        "0x471EcE3750Da237f93B8E339c536989b8978a438",
        "0x471ece3750da237f93b8e339c536989b8978a438",
        "0x000000000000000000000000000000000000800A",
        "0xfffffffffffffffffffffffffffffffffffffffe",
    ] {
        let text = format!("- name: a\n  rpc_url: http://a\n  tokens:\n    - {{symbol: X, address: {mirror}, decimals: 18}}");
        let error = parse(&text).unwrap_err();
        assert!(error.starts_with("chains.yaml:4:") && error.contains("count the same money twice"), "{error}");
    }
}

#[test]
fn the_repositorys_file_and_its_examples_parse() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../chains.yaml")).unwrap();
    assert_eq!(parse(&text).unwrap()[0].name, "anvil");
    let entries = &text[text.find("- name").unwrap()..];
    let examples: String = entries.lines().map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned() + "\n").collect();
    let chains = parse(&examples.replace("${INFURA_KEY}", "key")).unwrap();
    assert!(chains.len() > 5 && chains.iter().skip(1).all(|chain| !chain.tokens.is_empty()));
}
