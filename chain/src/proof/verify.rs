//! The proof that `chains.yaml` asks for.

/// How much of a block must be proven before it is published: `verify` in `chains.yaml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Header hash and roots where the encodings are known, otherwise the logs' bloom.
    Auto,
    /// Header hash and roots. Without them the block is refused.
    Roots,
    /// The logs' bloom alone, for chains whose block hash covers something other than Ethereum's header.
    Bloom,
    /// Nothing. The node is trusted.
    Off,
}
