# Prints ledgers.  Written long ago, and not to be touched.
package Ledger;

our ($account, $text, $debit, $credit, $balance, $title, $entries);

format LEDGER_TOP =
@<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<
$title
account  text                              debit     credit    balance
-------- ---------------------------- ---------- ---------- ----------
.

format LEDGER =
@<<<<<<< ^<<<<<<<<<<<<<<<<<<<<<<<<<<< @######.## @######.## @######.##
$account, $text,                      $debit,    $credit,   $balance
~~       ^<<<<<<<<<<<<<<<<<<<<<<<<<<<
         $text
.

sub ledger {
    ($title, my @rows) = @_;
    my $page = '';
    open(LEDGER, '>', \$page) or die "no memory: $!";
    ($balance, $entries) = (0, 0);
    for my $row (@rows) {
        ($account, $text, $debit, $credit) = @$row{qw(account text debit credit)};
        die "entry without an account\n" unless defined $account;
        $text = '' unless defined $text;
        $_ ||= 0 for $debit, $credit;
        $balance += $debit - $credit;
        $entries++;
        write LEDGER;
    }
    close LEDGER;
    return $page;
}

1;
