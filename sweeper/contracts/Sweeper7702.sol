// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// What a one-off deposit address delegates to by EIP-7702, to be swept of a token without gas of its own.
///
/// Anyone may call it, since it can pay nobody but the destination. The destination is in the code, so no storage of the
/// deposit address decides anything, and nobody has to set it up in time.
///
/// Left out on purpose:
/// - the coin: an address pays it itself, for 21,000 gas.
/// - ERC-1271: with code that does not answer it, tokens such as USDC take no permit or authorization of the address any more.
///   So addresses that are to sign such are not delegated at all.
/// - hooks that have to answer, of ERC-721, ERC-777 and ERC-1155: a payment to an address should find no code there.
contract Sweeper7702 {
    address public immutable destination;

    error NoDestination();
    error NotSwept();

    constructor(address destination_) {
        if (destination_ == address(0)) revert NoDestination();
        destination = destination_;
    }

    /// The coin arrives as at any address, as far as the payer's gas reaches: some 60 more than at one without code.
    receive() external payable {}

    /// So does coin with calldata, such as a wallet's note. It answers nothing, so whoever asks for an answer gets none.
    fallback() external payable {}

    /// Sends all of the token to the destination.
    function sweep(IToken token) external {
        uint256 amount = token.balanceOf(address(this));
        if (amount == 0) return;
        (bool ok, bytes memory answer) = address(token).call(abi.encodeCall(IToken.transfer, (destination, amount)));
        // Some tokens answer nothing, and revert where they refuse.
        if (!ok || (answer.length != 0 && !abi.decode(answer, (bool)))) revert NotSwept();
    }
}

interface IToken {
    function balanceOf(address account) external view returns (uint256);
    function transfer(address to, uint256 amount) external returns (bool);
}
