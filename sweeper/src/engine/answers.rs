//! What a node's answer to `eth_sendRawTransaction` means. Pure.
//!
//! Clients say the same thing in other words, and providers put words of their own around them. What is not known is
//! [`Answer::Unknown`]: the transaction may be in a pool, and may be mined. Nothing here says that one has failed; that is told
//! by a block alone.

use alloy::primitives::U256;
use std::str::FromStr as _;

/// What a node said to a signed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is in this node's pool now.
    Accepted,
    /// It was there before.
    AlreadyThere,
    /// The nonce is used: by this transaction, by another of ours, or by a stranger with the same key.
    NonceTooLow,
    /// A lower nonce is missing here.
    NonceTooHigh,
    /// The pool asks for more.
    Underpriced,
    /// Another transaction with this nonce is in the pool, and this one does not offer enough more.
    ReplacementUnderpriced,
    /// The pool holds a transaction of another type of this account, or of one that authorized it.
    AlreadyReserved,
    /// The pool takes no more of this account for now: a delegated one has one transaction in flight.
    InFlightLimit,
    /// The account can't pay; by how much, if the node says.
    InsufficientFunds { overshot: Option<U256> },
    /// A node that looks into transactions before it takes them saw that this one would do nothing.
    Reverted,
    /// Each node of the chain said so.
    RevertedByAll,
    /// Not told: no answer, or words that mean something else. The transaction may be in a pool.
    Unknown,
}

/// Words, and what they mean.
type Row = (&'static [&'static str], Answer);

/// In this order: what is found first counts, so that longer words come before those that they contain. In lower case.
///
/// Sources: go-ethereum `core/txpool/errors.go`, `core/txpool/legacypool/legacypool.go`, `core/error.go`; Besu
/// `RpcErrorType.java`; Nethermind `AcceptTxResult.cs` and the names that its older releases print; Erigon `txpoolcfg.go`; Reth
/// `rpc-eth-types/src/error/mod.rs`, `transaction-pool/src/error.rs`; anvil `eth/error.rs`; OpenEthereum
/// `rpc/src/v1/helpers/errors.rs`.
const TABLE: &[Row] = &[
    // geth, of an authorization that the transaction carries (EIP-7702), and not of its own nonce.
    (&["authority nonce too low"], Answer::Reverted),
    (
        &[
            "replacement transaction underpriced",         // geth, Besu, Erigon, Nethermind, Reth
            "insufficient gas price to replace",           // anvil, Reth's pool
            "could not replace existing tx",               // Erigon
            "replacementnotallowed",                       // Nethermind
            "replacement fee too low",                     // ethers' word for it, that providers repeat
            "another transaction with same nonce", // OpenEthereum: "There is another transaction with same nonce in the queue"
            "future transaction tries to replace pending", // geth
        ],
        Answer::ReplacementUnderpriced,
    ),
    (
        &[
            "already known",                 // geth, Erigon, Nethermind, Reth
            "alreadyknown",                  // Nethermind
            "already imported",              // anvil, OpenEthereum, Reth's pool
            "same hash was already",         // OpenEthereum: "Transaction with the same hash was already imported."
            "existing tx with same hash",    // Erigon
            "existing txn with same hash",   // Erigon
            "transaction already exists",    // providers
            "already in mempool",            // providers
            "already exists in the mempool", // Cosmos EVM chains
        ],
        Answer::AlreadyThere,
    ),
    (
        &[
            "in-flight transaction limit reached", // geth, Reth: of a delegated account
            "account limit exceeded",              // geth
            "delegatorhaspendingtx",               // Nethermind
            "delegation authority has",            // Nethermind
            "notcurrentnoncefordelegation",        // Nethermind
            "delegation nonce gap",                // Nethermind
            "gapped-nonce tx from delegated",      // geth
            "sender has too many",                 // providers
        ],
        Answer::InFlightLimit,
    ),
    (
        &[
            "already reserved",            // geth, Erigon, Reth: an address or an authority
            "pendingtxsofconflictingtype", // Nethermind
            "conflicting type",            // Nethermind
            "transaction type conflict",   // Nethermind
        ],
        Answer::AlreadyReserved,
    ),
    (
        &[
            "nonce too low",    // geth, Erigon, Nethermind, Reth, anvil, Besu ("Nonce too low"), Arbitrum, OP
            "nonce is too low", // OpenEthereum: "Transaction nonce is too low."
            "oldnonce",         // Nethermind
        ],
        Answer::NonceTooLow,
    ),
    (
        &[
            "nonce too high",                        // geth, Reth, anvil, Besu, Nethermind
            "nonce is too high",                     // providers
            "too distant from current sender nonce", // Besu
            "lower nonce exists",                    // Besu: "An invalid transaction with a lower nonce exists"
            "exceeds next nonce",                    // Nethermind
            "noncegap",                              // Nethermind
            "noncetoofarinfuture",                   // Nethermind
            "nonce out of range",                    // providers
            "tx-nonce-too-high",                     // providers
            "nonce too far",                         // Erigon; Besu, Nethermind ("nonce too far in the future")
        ],
        Answer::NonceTooHigh,
    ),
    (
        &[
            "insufficient funds",                   // geth, Erigon, Reth, anvil ("Insufficient funds"), OpenEthereum
            "insufficientfunds",                    // Nethermind
            "upfront cost exceeds account balance", // Besu
            "insufficient balance",                 // Cosmos EVM chains, Nethermind
            "doesn't have enough funds",            // Hardhat
            "not enough funds",                     // zkSync
        ],
        Answer::InsufficientFunds { overshot: None },
    ),
    (
        &[
            "underpriced",                              // geth, Erigon, Reth, Nethermind
            "fee too low",                              // Erigon
            "feetoolow",                                // Nethermind
            "max fee per gas less than block base fee", // geth, Reth, anvil, Arbitrum
            "gas price below",                          // Besu: "… configured minimum gas price", "… current base fee"
            "gas price too low",                        // providers
            "gas price is too low",                     // OpenEthereum
            "feecap",      // Substrate chains and Reth's pool: "Transaction feeCap … below chain minimum"
            "gas tip cap", // geth: "gas tip cap …, minimum needed …"
        ],
        Answer::Underpriced,
    ),
    (
        &[
            "execution reverted",   // geth, Besu ("Execution reverted"), Arbitrum, anvil
            "transaction reverted", // providers
            "vm execution error",   // OpenEthereum
            "failed to validate the transaction. reason: validation revert", // zkSync
        ],
        Answer::Reverted,
    ),
    // Besu's "Known transaction", and not "unknown transaction".
    (&["unknown"], Answer::Unknown),
    (&["known transaction"], Answer::AlreadyThere),
];

impl Answer {
    /// Reads the words of an error answer, of whatever code: each client has its own.
    pub fn read(message: &str) -> Self {
        let message = message.to_lowercase();
        let found = TABLE.iter().find(|(words, _)| words.iter().any(|words| message.contains(words)));
        match found.map_or(Self::Unknown, |(_, answer)| *answer) {
            Self::InsufficientFunds { .. } => Self::InsufficientFunds { overshot: overshot(&message) },
            answer => answer,
        }
    }

    /// Of the answers of several endpoints the one that says most about where the transaction is: in a pool, if any says so;
    /// what has to be done before one takes it; or nothing. What one node sees alone may be its own mistake.
    pub fn best(answers: &[Self]) -> Self {
        let rank = |answer: &Self| match answer {
            Self::Accepted => 0,
            Self::AlreadyThere => 1,
            // A node that is behind the others has the nonce unused: one that is ahead knows better.
            Self::NonceTooLow => 2,
            Self::ReplacementUnderpriced => 3,
            Self::Underpriced => 4,
            Self::InsufficientFunds { .. } => 5,
            Self::InFlightLimit => 6,
            Self::AlreadyReserved => 7,
            Self::RevertedByAll => 8,
            Self::Reverted => 9,
            Self::NonceTooHigh => 10,
            Self::Unknown => 11,
        };
        match answers.iter().copied().min_by_key(rank) {
            Some(Self::Reverted) if answers.iter().all(|answer| *answer == Self::Reverted) => Self::RevertedByAll,
            best => best.unwrap_or(Self::Unknown),
        }
    }
}

/// geth says by how much, in wei: "balance 5, tx cost 7, overshot 2".
fn overshot(message: &str) -> Option<U256> {
    // One that was cut off would be too low.
    let (_, after) = message.split_once("overshot").filter(|(_, after)| !after.ends_with('…'))?;
    let digits: String = after.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    U256::from_str(&digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_FUNDS: Answer = Answer::InsufficientFunds { overshot: None };

    /// As clients print them. The first column names the client, for whoever reads a failure.
    const SEEN: &[(&str, &str, Answer)] = &[
        ("geth", "already known", Answer::AlreadyThere),
        ("geth", "nonce too low: next nonce 5, tx nonce 4", Answer::NonceTooLow),
        ("geth", "nonce too low: address 0xf39F…, tx: 4 state: 5", Answer::NonceTooLow),
        ("geth", "nonce too high: address 0xf39F…, tx: 9 state: 5", Answer::NonceTooHigh),
        ("geth", "transaction underpriced", Answer::Underpriced),
        ("geth", "transaction underpriced: gas tip cap 1, minimum needed 1000000", Answer::Underpriced),
        ("geth", "replacement transaction underpriced", Answer::ReplacementUnderpriced),
        ("geth", "replacement transaction underpriced: new tx gas fee cap 1 < 2 queued", Answer::ReplacementUnderpriced),
        ("geth", "future transaction tries to replace pending", Answer::ReplacementUnderpriced),
        ("geth", "address already reserved", Answer::AlreadyReserved),
        ("geth", "authority already reserved", Answer::AlreadyReserved),
        ("geth", "in-flight transaction limit reached for delegated accounts", Answer::InFlightLimit),
        ("geth", "gapped-nonce tx from delegated accounts", Answer::InFlightLimit),
        ("geth", "insufficient funds for gas * price + value", NO_FUNDS),
        (
            "geth",
            "insufficient funds for gas * price + value: balance 5, tx cost 12, overshot 7",
            Answer::InsufficientFunds { overshot: Some(U256::from_limbs([7, 0, 0, 0])) },
        ),
        (
            "geth",
            "insufficient funds for gas * price + value: balance 1, queued cost 2, tx bumped 3, overshot 18446744073709551616",
            Answer::InsufficientFunds { overshot: Some(U256::from_limbs([0, 1, 0, 0])) },
        ),
        ("geth", "max fee per gas less than block base fee: address 0x1, maxFeePerGas: 1, baseFee: 2", Answer::Underpriced),
        ("geth", "txpool is full", Answer::Unknown),
        ("geth", "tx fee (2.00 ether) exceeds the configured cap (1.00 ether)", Answer::Unknown),
        ("geth", "authority nonce too low", Answer::Reverted),
        ("Besu", "Known transaction", Answer::AlreadyThere),
        ("Besu", "Nonce too low", Answer::NonceTooLow),
        ("Besu", "Nonce too high", Answer::NonceTooHigh),
        ("Besu", "Transaction nonce is too distant from current sender nonce", Answer::NonceTooHigh),
        ("Besu", "An invalid transaction with a lower nonce exists", Answer::NonceTooHigh),
        ("Besu", "Replacement transaction underpriced", Answer::ReplacementUnderpriced),
        ("Besu", "Upfront cost exceeds account balance", NO_FUNDS),
        ("Besu", "Gas price below configured minimum gas price", Answer::Underpriced),
        ("Besu", "Gas price below current base fee", Answer::Underpriced),
        ("Besu", "Execution reverted", Answer::Reverted),
        ("Besu", "Initial sync is still in progress", Answer::Unknown),
        ("Nethermind", "AlreadyKnown", Answer::AlreadyThere),
        ("Nethermind", "already known", Answer::AlreadyThere),
        ("Nethermind", "OldNonce, Current nonce: 5, nonce of rejected tx: 4.", Answer::NonceTooLow),
        ("Nethermind", "NonceGap, Future nonce. Expected nonce: 5", Answer::NonceTooHigh),
        ("Nethermind", "transaction nonce 9 exceeds next nonce 5", Answer::NonceTooHigh),
        ("Nethermind", "ReplacementNotAllowed, existing tx has a higher fee", Answer::ReplacementUnderpriced),
        ("Nethermind", "FeeTooLowToCompete", Answer::Underpriced),
        ("Nethermind", "InsufficientFunds, Account balance: 1, cumulative cost: 2", NO_FUNDS),
        ("Nethermind", "DelegatorHasPendingTx", Answer::InFlightLimit),
        ("Nethermind", "PendingTxsOfConflictingType", Answer::AlreadyReserved),
        ("Erigon", "could not replace existing tx", Answer::ReplacementUnderpriced),
        ("Erigon", "INTERNAL_ERROR: existing tx with same hash", Answer::AlreadyThere),
        ("Erigon", "existing txn with same hash", Answer::AlreadyThere),
        ("Erigon", "underpriced", Answer::Underpriced),
        ("Erigon", "fee too low", Answer::Underpriced),
        ("Erigon", "insufficient funds", NO_FUNDS),
        ("Erigon", "EIP-7702 transaction with authority already reserved", Answer::AlreadyReserved),
        ("Erigon", "pending sub-pool is full", Answer::Unknown),
        ("Reth", "insufficient funds for gas * price + value: have 1 want 2", NO_FUNDS),
        ("Reth", "nonce too high", Answer::NonceTooHigh),
        ("Reth", "[0xab…]: insufficient gas price to replace existing transaction.", Answer::ReplacementUnderpriced),
        ("Reth", "max fee per gas less than block base fee", Answer::Underpriced),
        ("anvil", "Insufficient funds for gas * price + value", NO_FUNDS),
        ("anvil", "nonce too low", Answer::NonceTooLow),
        ("anvil", "transaction already imported", Answer::AlreadyThere),
        ("anvil", "Tx: [0xab] already Imported", Answer::AlreadyThere),
        ("anvil", "Tx: [0xab] insufficient gas price to replace existing transaction", Answer::ReplacementUnderpriced),
        ("OpenEthereum", "Transaction nonce is too low. Try incrementing the nonce.", Answer::NonceTooLow),
        ("OpenEthereum", "Transaction with the same hash was already imported.", Answer::AlreadyThere),
        (
            "OpenEthereum",
            "Transaction gas price is too low. It does not satisfy your node's minimal gas price",
            Answer::Underpriced,
        ),
        (
            "OpenEthereum",
            "Transaction gas price supplied is too low. There is another transaction with same nonce in the queue.",
            Answer::ReplacementUnderpriced,
        ),
        ("Arbitrum", "execution reverted: ERC20: transfer amount exceeds balance", Answer::Reverted),
        ("anybody", "unknown transaction", Answer::Unknown),
        ("anybody", "internal error", Answer::Unknown),
        ("anybody", "rate limit exceeded", Answer::Unknown),
        ("anybody", "", Answer::Unknown),
    ];

    #[test]
    fn the_words_of_every_client_are_known() {
        for (client, words, expected) in SEEN {
            assert_eq!(Answer::read(words), *expected, "{client}: {words}");
        }
    }

    /// A row that another hides would never be found.
    #[test]
    fn every_row_is_reached_by_its_own_words() {
        for (words, answer) in TABLE {
            for word in *words {
                assert_eq!(Answer::read(word), *answer, "{word}");
                assert_eq!(*word, word.to_lowercase());
            }
        }
    }

    #[test]
    fn one_endpoint_that_has_it_outweighs_all_that_have_not() {
        let all = [Answer::Unknown, Answer::NonceTooHigh, Answer::Underpriced, Answer::AlreadyThere];
        assert_eq!(Answer::best(&all), Answer::AlreadyThere);
        assert_eq!(Answer::best(&[Answer::NonceTooHigh, Answer::NonceTooLow]), Answer::NonceTooLow);
        assert_eq!(Answer::best(&[]), Answer::Unknown);
    }

    #[test]
    fn what_one_sees_alone_is_not_the_word_of_all() {
        assert_eq!(Answer::best(&[Answer::Reverted, Answer::Reverted]), Answer::RevertedByAll);
        for other in [Answer::Unknown, Answer::NonceTooHigh] {
            assert_eq!(Answer::best(&[Answer::Reverted, other]), Answer::Reverted);
        }
        assert_eq!(Answer::best(&[Answer::Reverted, Answer::Underpriced]), Answer::Underpriced);
    }
}
