# Reads one request a line from the bus, and answers it: docs/wrap-program.md.
use strict;
use warnings;
use FindBin;
use JSON::PP;
use Text::Wrap ();
use Time::Piece;

require "$FindBin::Bin/ledger.pl";

my %ops = (
    '/ledger/print' => sub {
        my ($args) = @_;
        return Ledger::ledger($args->{title}, @{ $args->{rows} });
    },
    '/text/wrap' => sub {
        my ($args) = @_;
        local $Text::Wrap::columns = $args->{columns} + 1;
        return Text::Wrap::wrap('', '', $args->{text});
    },
    '/date/read' => sub {
        my ($args) = @_;
        return Time::Piece->strptime($args->{text}, $args->{format})->datetime;
    },
);

my $json = JSON::PP->new->utf8->canonical;
$| = 1;    # each answer at once
while (my $line = <STDIN>) {
    my $request = $json->decode($line);
    my $answer  = { id => $request->{id} };
    eval { $answer->{value} = $ops{ $request->{op} }->($request->{args}); 1 }
        or $answer->{refused} = $@ =~ s/ at \S+ line \d+.*//sr;
    print $json->encode($answer), "\n";
}
