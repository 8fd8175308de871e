// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// Sweeps many delegated addresses in one transaction, whose authorizations go with it.
///
/// It holds nothing and may do nothing, so anyone may call it. It is a contract of its own and no part of `Puller`, to which
/// addresses give allowances: what it calls is in the calldata.
contract SweepBatch {
    /// The transaction has too little gas for the rest of the batch.
    error LowGas();

    /// Sweeps one token from each account, with `gasEach` at most. One that fails leaves the others alone: an address whose
    /// authorization was stale has no code, and the token may refuse one. What was swept is told by the token's logs.
    function sweep(address token, uint256 gasEach, address[] calldata accounts) external {
        bytes memory order = abi.encodeCall(ISweeper.sweep, (token));
        for (uint256 i = 0; i < accounts.length; ++i) {
            address account = accounts[i];
            // Else a call could fail for want of gas, and the transaction would succeed without it.
            if (gasleft() < gasEach + gasEach / 32 + 10_000) revert LowGas();
            assembly ("memory-safe") {
                pop(call(gasEach, account, 0, add(order, 0x20), mload(order), 0, 0))
            }
        }
    }
}

interface ISweeper {
    function sweep(address token) external;
}
