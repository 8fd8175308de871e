// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// A token whose functions return nothing, as USDT's do on mainnet, and take all gas where they refuse, as code of before 2017
/// does.
contract MuteToken {
    string public constant name = "Mute Dollar";
    string public constant symbol = "MUSD";
    uint8 public constant decimals = 6;
    uint256 public totalSupply = 1_000_000_000_000_000;
    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(address => uint256)) public allowance;
    mapping(address => bool) public blacklisted;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);

    constructor() {
        balanceOf[msg.sender] = totalSupply;
        emit Transfer(address(0), msg.sender, totalSupply);
    }

    function blacklist(address account) external {
        blacklisted[account] = true;
    }

    function transfer(address to, uint256 value) external {
        move(msg.sender, to, value);
    }

    function approve(address spender, uint256 value) external {
        allowance[msg.sender][spender] = value;
        emit Approval(msg.sender, spender, value);
    }

    function transferFrom(address from, address to, uint256 value) external {
        uint256 allowed = allowance[from][msg.sender];
        refuseUnless(allowed >= value);
        if (allowed != type(uint256).max) allowance[from][msg.sender] = allowed - value;
        move(from, to, value);
    }

    function move(address from, address to, uint256 value) private {
        refuseUnless(!blacklisted[from] && balanceOf[from] >= value);
        balanceOf[from] -= value;
        balanceOf[to] += value;
        emit Transfer(from, to, value);
    }

    function refuseUnless(bool fine) private pure {
        if (!fine) assembly { invalid() }
    }
}
