// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// Takes tokens from deposit addresses to the treasury: by allowance, by permit (EIP-2612), or by authorization (EIP-3009).
///
/// Deposit addresses give their standing allowance to this contract and to nobody's key. It can pay nobody but the treasury,
/// which is in its code, so anyone may call it, and whoever sees a permit or an authorization early and submits it first does
/// only what was wanted. A token is whatever contract the caller names: a false one can do nothing here that it could not do by
/// itself, since this contract holds nothing and calls a token's own functions alone.
///
/// Each address is tried: one that the token refuses leaves the others alone. What was taken is told by the token's logs.
contract Puller {
    address public immutable treasury;

    error NoTreasury();
    /// The transaction has too little gas for the rest of the batch.
    error LowGas();

    struct Permit {
        address owner;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    struct Authorization {
        address from;
        uint256 value;
        bytes32 nonce;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    constructor(address treasury_) {
        if (treasury_ == address(0)) revert NoTreasury();
        treasury = treasury_;
    }

    /// Takes what the owners have by their allowances, but for `leave` units each: an address that keeps one spares its next payer
    /// a third of the gas, on Amsterdam two thirds. Each call of the token has `gasEach` at most.
    function pull(address token, uint256 leave, uint256 gasEach, address[] calldata owners) external {
        (bytes memory ask, bytes memory take) = orders();
        for (uint256 i = 0; i < owners.length; ++i) {
            pullFrom(token, leave, gasEach, owners[i], ask, take);
        }
    }

    /// As `pull`, after a permit of each owner for `value` until `deadline`. A permit that was submitted before fails, and its
    /// allowance is there.
    function permitAndPull(
        address token,
        uint256 leave,
        uint256 gasEach,
        uint256 value,
        uint256 deadline,
        Permit[] calldata permits
    ) external {
        (bytes memory ask, bytes memory take) = orders();
        bytes memory allow =
            abi.encodeCall(IToken.permit, (address(0), address(this), value, deadline, 0, bytes32(0), bytes32(0)));
        for (uint256 i = 0; i < permits.length; ++i) {
            Permit calldata one = permits[i];
            set(allow, 0, uint160(one.owner));
            set(allow, 4, one.v);
            set(allow, 5, uint256(one.r));
            set(allow, 6, uint256(one.s));
            tryCall(token, gasEach, allow);
            pullFrom(token, leave, gasEach, one.owner, ask, take);
        }
    }

    /// Submits authorizations of transfers to the treasury, valid from the beginning until `validBefore`.
    function authorized(address token, uint256 gasEach, uint256 validBefore, Authorization[] calldata all) external {
        bytes memory take = abi.encodeCall(
            IToken.transferWithAuthorization,
            (address(0), treasury, 0, 0, validBefore, bytes32(0), 0, bytes32(0), bytes32(0))
        );
        for (uint256 i = 0; i < all.length; ++i) {
            Authorization calldata one = all[i];
            set(take, 0, uint160(one.from));
            set(take, 2, one.value);
            set(take, 5, uint256(one.nonce));
            set(take, 6, one.v);
            set(take, 7, uint256(one.r));
            set(take, 8, uint256(one.s));
            tryCall(token, gasEach, take);
        }
    }

    /// The calls of `pullFrom`, encoded once for a batch. Each owner's values are put into them.
    function orders() private view returns (bytes memory ask, bytes memory take) {
        ask = abi.encodeCall(IToken.balanceOf, (address(0)));
        take = abi.encodeCall(IToken.transferFrom, (address(0), treasury, 0));
    }

    function pullFrom(
        address token,
        uint256 leave,
        uint256 gasEach,
        address owner,
        bytes memory ask,
        bytes memory take
    ) private {
        set(ask, 0, uint160(owner));
        uint256 balance = tryAsk(token, gasEach, ask);
        if (balance <= leave) return;
        set(take, 0, uint160(owner));
        set(take, 2, balance - leave);
        tryCall(token, gasEach, take);
    }

    /// Sets an argument of an encoded call. All have one word each.
    function set(bytes memory data, uint256 argument, uint256 value) private pure {
        assembly ("memory-safe") {
            mstore(add(add(data, 0x24), mul(argument, 0x20)), value)
        }
    }

    /// Calls the token, whatever becomes of it. What it returns is not copied.
    function tryCall(address token, uint256 gasEach, bytes memory data) private {
        enough(gasEach);
        assembly ("memory-safe") {
            pop(call(gasEach, token, 0, add(data, 0x20), mload(data), 0, 0))
        }
    }

    /// The number that the token answers; 0 if it answers none.
    function tryAsk(address token, uint256 gasEach, bytes memory data) private view returns (uint256 answer) {
        enough(gasEach);
        assembly ("memory-safe") {
            let ok := staticcall(gasEach, token, add(data, 0x20), mload(data), 0, 0x20)
            if and(ok, gt(returndatasize(), 0x1f)) {
                answer := mload(0)
            }
        }
    }

    /// Else a call could fail for want of gas, and the transaction would succeed without it.
    function enough(uint256 gasEach) private view {
        if (gasleft() < gasEach + gasEach / 32 + 10_000) revert LowGas();
    }
}

interface IToken {
    function balanceOf(address account) external view returns (uint256);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
    function permit(address owner, address spender, uint256 value, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external;
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;
}
