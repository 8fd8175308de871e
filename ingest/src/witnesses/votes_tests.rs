use super::*;
use topics::B256;

fn head(number: u64) -> Head {
    let hash = |number: u64| B256::from(topics::U256::from(number + 1000));
    Head { number, hash: hash(number + 1), parent_hash: hash(number), timestamp: number }
}

fn votes(needed: usize, providers: &[&str]) -> Votes {
    Votes::new(needed, providers.iter().map(|provider| (*provider).to_owned()))
}

/// An endpoint contradicts us from a height on, in so many looks.
fn contradict(votes: &mut Votes, place: usize, from: u64, to: u64, looks: usize) {
    (0..looks).for_each(|_| votes.differ(place, from.checked_sub(1), from, to));
}

#[test]
fn a_block_is_witnessed_once_enough_providers_have_given_it_or_one_above() {
    let mut votes = votes(2, &["a", "b", "c", "c"]);
    votes.agree(0, 10);
    assert_eq!(votes.witnessed(), None, "nobody else has said anything");
    votes.agree(1, 7);
    assert_eq!(votes.witnessed(), Some(7));
    votes.agree(2, 9);
    assert_eq!(votes.witnessed(), Some(9));
    votes.agree(3, 12);
    assert_eq!(votes.witnessed(), Some(10), "two endpoints of one provider are one witness");
    votes.silent(0);
    assert_eq!(votes.witnessed(), Some(10), "silence takes nothing back");
    votes.removed(Some(8));
    assert_eq!(votes.witnessed(), Some(8), "what a reorg takes off has no witnesses");
    votes.removed(None);
    assert_eq!(votes.witnessed(), None);
}

#[test]
fn nothing_is_witnessed_once_no_block_of_ours_is_left() {
    let mut votes = votes(2, &["a", "b"]);
    votes.agree(0, 10);
    votes.agree(1, 10);
    assert_eq!(votes.witnessed(), Some(10));
    // What they have below it was never ours.
    votes.removed(None);
    assert_eq!(votes.witnessed(), None);
}

#[test]
fn an_endpoint_that_leaves_our_chain_witnesses_no_more_than_it_shares_with_us() {
    let mut votes = votes(2, &["a", "b"]);
    votes.agree(0, 10);
    votes.differ(0, Some(5), 6, 10);
    votes.agree(1, 10);
    assert_eq!(votes.witnessed(), Some(5));
}

#[test]
fn one_that_contradicts_two_is_outvoted_and_two_outvote_one() {
    let mut votes = votes(2, &["a", "b", "c"]);
    votes.agree(0, 10);
    contradict(&mut votes, 1, 9, 12, 1);
    contradict(&mut votes, 2, 9, 12, 2);
    assert_eq!(votes.outvoted(), None, "one of them has left our block in a single look");
    contradict(&mut votes, 1, 9, 12, 1);
    assert_eq!(votes.outvoted(), Some(9));
    assert!(votes.may_replace(1, 9) && votes.may_replace(0, 10), "whoever shows the branch");
    assert!(!votes.may_replace(1, 8), "of block 8 all three have ours");
    votes.agree(2, 10);
    assert_eq!(votes.outvoted(), None);
    assert_eq!(votes.contradicting(), [(1, 9)]);
    assert_eq!(votes.agreeing(10), [0, 2]);
}

#[test]
fn nobody_is_named_while_others_have_still_to_say_on_which_side_they_are() {
    let mut votes = votes(2, &["liar", "b", "c"]);
    votes.agree(0, 10);
    votes.agree(2, 8);
    contradict(&mut votes, 1, 9, 12, 2);
    assert_eq!(votes.contradicting(), [], "the third lags");
    contradict(&mut votes, 2, 9, 12, 1);
    assert_eq!(votes.contradicting(), [], "the third was looked at once");
    contradict(&mut votes, 2, 9, 12, 1);
    assert_eq!(votes.outvoted(), Some(9));
    // One that lags for long decides nothing.
    votes.agree(2, 8);
    contradict(&mut votes, 1, 9, 12, 2);
    assert_eq!(votes.contradicting(), [(1, 9)]);
}

#[test]
fn lag_and_silence_are_no_vote() {
    let mut votes = votes(2, &["a", "b", "c"]);
    contradict(&mut votes, 0, 9, 12, 2);
    votes.agree(1, 8);
    assert_eq!(votes.outvoted(), None, "nobody has looked at the third");
    votes.silent(2);
    assert_eq!(votes.outvoted(), Some(9), "the other lags, and so says nothing about block 9");
    votes.agree(1, 9);
    assert_eq!(votes.outvoted(), None, "one against one is no majority");
    votes.silent(1);
    assert_eq!(votes.outvoted(), Some(9));
    votes.silent(0);
    assert_eq!(votes.outvoted(), None, "looks that an outage interrupts are not running");
    contradict(&mut votes, 0, 9, 12, 1);
    assert_eq!(votes.outvoted(), None);
}

#[test]
fn two_branches_of_others_are_a_majority_from_where_the_second_leaves_ours() {
    let mut votes = votes(2, &["a", "b", "c"]);
    votes.agree(0, 10);
    contradict(&mut votes, 1, 5, 10, 2);
    contradict(&mut votes, 2, 7, 10, 2);
    assert_eq!(votes.outvoted(), Some(7));
    assert!(!votes.may_replace(1, 5) && votes.may_replace(2, 7));
}

#[test]
fn two_endpoints_of_one_provider_have_one_vote() {
    let mut votes = votes(2, &["a", "liar", "liar", "liar"]);
    votes.agree(0, 10);
    (1..4).for_each(|place| contradict(&mut votes, place, 9, 12, 2));
    assert_eq!(votes.outvoted(), None);
    votes.agree(2, 10);
    assert_eq!(votes.opinions(10), [Opinion::Agrees, Opinion::Agrees], "a provider that has ours too is with us");
}

#[test]
fn where_one_witness_is_enough_so_is_one_endpoint() {
    let mut votes = votes(1, &["a", "b"]);
    votes.agree(1, 10);
    contradict(&mut votes, 0, 9, 12, 1);
    assert!(!votes.may_replace(0, 9));
    contradict(&mut votes, 0, 9, 12, 1);
    assert!(votes.may_replace(0, 9) && !votes.may_replace(1, 9));
}

#[test]
fn a_reorg_of_ours_ends_what_was_said_of_the_removed_blocks() {
    let mut votes = votes(2, &["a", "b", "c"]);
    votes.agree(0, 10);
    contradict(&mut votes, 1, 9, 12, 2);
    contradict(&mut votes, 2, 9, 12, 2);
    votes.removed(Some(9));
    votes.removed(Some(8));
    assert_eq!((votes.outvoted(), votes.contradicting()), (None, vec![]));
    assert_eq!(votes.witnessed(), Some(8));
}

/// Its hash does not prove what a block in doubt stands on.
#[test]
fn whoever_has_a_block_in_doubt_is_not_taken_to_have_those_below() {
    let mut votes = votes(2, &["a", "b", "c"]);
    votes.agree(0, 7);
    votes.agree(1, 4);
    votes.doubt_from(Some(8));
    (0..3).for_each(|place| votes.agree(place, 10));
    assert_eq!(votes.witnessed(), Some(4));
    votes.differ(2, Some(9), 10, 10);
    assert_eq!(votes.witnessed(), Some(4));
    votes.trust(1, 6);
    votes.trust(1, 8);
    assert_eq!(votes.witnessed(), Some(6));
    votes.doubt_from(Some(10));
    assert_eq!(votes.witnessed(), Some(7), "the first two have shown block 10 and not what is between");
    votes.doubt_from(None);
    assert_eq!(votes.witnessed(), Some(10));
    votes.removed(Some(5));
    assert_eq!(votes.witnessed(), Some(5));
}

/// Ours are the blocks 5, 9 and 10.
#[test]
fn what_is_said_of_a_height_that_the_chain_skips_holds_for_the_block_above() {
    let mut votes = votes(2, &["a", "b", "c"]);
    votes.agree(0, 10);
    // They have block 7, or 12, on block 5.
    (0..2).for_each(|_| votes.differ(1, Some(5), 6, 7));
    (0..2).for_each(|_| votes.differ(2, Some(5), 6, 12));
    assert_eq!(votes.outvoted(), Some(6));
    assert!(votes.may_replace(1, 9), "block 9 is the lowest of ours above 5");
    assert!(!votes.may_replace(1, 5));
    votes.removed(Some(9));
    assert_eq!(votes.outvoted(), Some(6), "block 9 is ours still");
    votes.agree(1, 9);
    assert_eq!(votes.witnessed(), Some(9));
    // Nothing of block 7, which takes its place, is witnessed.
    votes.removed(Some(5));
    assert_eq!((votes.witnessed(), votes.outvoted(), votes.is_disputed()), (Some(5), None, false));
}

#[test]
fn a_tag_counts_where_it_is_ours_and_as_many_have_reached_it_as_witnesses_are_asked() {
    let window = Window::new((0..=20).map(head), true, None);
    let mut votes = votes(2, &["a", "b", "c", "c"]);
    let of = |tags: &Tags| tags.safe;
    let safe = |number: u64| Tags { safe: Some(head(number)), finalized: None };
    votes.tagged(0, safe(18));
    assert_eq!(votes.tag(of, &window), None, "one alone");
    let elsewhere = Head { hash: B256::repeat_byte(7), ..head(19) };
    votes.tagged(1, Tags { safe: Some(elsewhere), finalized: None });
    assert_eq!(votes.tag(of, &window), None, "on another branch");
    votes.tagged(1, safe(25));
    assert_eq!(votes.tag(of, &window), None, "above all that we have");
    votes.tagged(2, safe(12));
    votes.tagged(3, safe(14));
    assert_eq!(votes.tag(of, &window), Some(head(14)));
    votes.tagged(3, Tags::default());
    assert_eq!(votes.tag(of, &window), Some(head(14)), "an endpoint that fails now has said it");
    votes.tagged(1, safe(20));
    assert_eq!(votes.tag(of, &window), Some(head(18)));
    assert_eq!(votes.tag(|tags| tags.finalized, &window), None);
}
