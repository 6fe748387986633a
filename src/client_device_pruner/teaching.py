"""What the help of each command teaches: what its columns mean, and examples."""

EXAMPLES = """\
examples:
  pruner status                    is all well, and if not, what is to be done
  pruner list --state marked       what goes next unless it shows life
  pruner explain press-7           why press-7 is, or is not, going to be disassociated
  pruner history                   what was done, and on what evidence
  pruner restore press-7           undo it
  pruner status --json             the same for machines; every command has it

exit status: 0 done, 1 it could not be done (one sentence on standard error says why), 2 wrong use.
Run it as root or as the component's user. All but restore and approve only read. Times are UTC.
pruner COMMAND --help explains each command."""

STATUS = """\
what it shows:
  Component        whether it runs, and when it last wrote what follows (every minute, and after each event)
  Devices          the associated devices by state (pruner list --help explains the states)
  Coverage         how many could be disassociated once they are gone, and what is missing for the others
  Sources          VOUCHES: it can prove an absence now; CLOCK: how long it has vouched in all, the clock that all
                   absences on it are measured on; WHY: what it goes by, or what it waits for
  Guards in force  what holds disassociations back, with what to do
  The doctor found what in the MQTT bridge's configuration keeps the component blind, with the JSON to deploy

with --json: running, time, sources {name: {vouching, clockSeconds, reason}}, counts {state: number},
coverage {associated, provable, reasons}, guards [{guard, reason, remedy}], plan (null or {id, devices}),
nextCheckInSeconds (null if none is planned), doctor [{finding, remedy}].

example:
  pruner status --json | jq .running"""

LIST = """\
columns:
  THING   the thing name
  STATE   present    a source has it connected, or heard it of late
          absent     a source that vouches has not
          unknown    no source that would have shown it vouches now
          marked     its absence is proven for longer than its threshold; its notice runs
          due        the notice has run out: the next cycle disassociates it, unless a guard holds
          protected  protectedClients has it: it is never disassociated
  ABSENT  how long the source has vouched since its last sign of life (not the time on the wall)
  OF      its threshold, by offlineThreshold, thresholds, neverSeenThreshold, or its own habit; never: it was
          not seen yet, and neverSeenThreshold is empty
  PROOF   what proves it: census, rollCall or habit; - if nothing does yet
  SOURCE  the source whose clock ABSENT is measured on: the proof, or what comes nearest to one
  DUE     what is left of its notice on that clock, which stands still while the source does not vouch

with --json: a list of {thingName, state, offlineSeconds, thresholdSeconds, proof, sourceName, dueInSeconds}.

examples:
  pruner list
  pruner list --state due"""

EXPLAIN = """\
It lists each condition, whether it is met (yes or no), and its figure:
  first those of every disassociation, then those of each source (one source whose conditions are all met is a
  proof), then what comes between the proof and the disassociation: the notice, and the guards that hold.
The last line says what would have to happen, or why it never will.

with --json: thingName, state, associatedAt, seen, conditions [{text, met}], sources {name: {proof, proves,
offlineSeconds, thresholdSeconds, conditions}}, finally [{text, met}], dueInSeconds, conclusion.
Of one that it has disassociated: thingName, state (null), disassociated {its evidence}, conclusion.

example:
  pruner explain press-7"""

HISTORY = """\
columns:
  TIME      when, by the wall clock of this device
  THING     the thing name; - if it concerns a whole call
  WHAT      marked, unmarked, intended (sent, the outcome is not known yet), disassociated (confirmed),
            failed, returned (it showed life after that), restored (associated again)
  EVIDENCE  how long absent of which threshold, by which proof of which source, and the cycle's id

with --json: a list of {time, type, thingName, data}, oldest first; data as in the events.

examples:
  pruner history
  pruner history press-7"""

REPORT = """\
The page holds all that it shows and needs no network: copy it from the device and open it in any browser.
  Rows       one for each device that is associated, or that was disassociated by this component, on one time axis:
             present, absent (a source vouched, and did not have it), unknown (nothing would have shown it), outage
             (lost together with others), marked, disassociated
  Decisions  on the rows: point at one, tap it, or walk there with the arrow keys, to see on what evidence
  Above      when each source vouched and when not, and what held disassociations back

It is drawn from what the component noted: the latest 20,000 events and 50,000 comings and goings, at most 400 days.
Of what changed to and fro between two writes (a minute) it shows the first and the last.

with --json: {file, devices, bytes}.

example:
  pruner report /tmp/report.html"""

RESTORE = """\
The request is left in the state file; the component takes it up within 60 s and associates the devices again. Its
role needs greengrass:BatchAssociateClientDeviceWithCoreDevice for that. A restored device is safe for its whole
threshold. pruner history shows the names, the cycles' ids, and what came of it.

with --json: {queued, names, running}.

examples:
  pruner restore press-7 press-8
  pruner restore --cycle 3f2a9c81d4
  pruner restore --all"""

APPROVE = """\
When so many devices are due together that a mistake or an outage is more likely than so many losses, they wait as
a plan. pruner status shows its id and its devices: look whether they are really gone, then approve it. The next
cycle heeds it. It covers only the devices that it names, and spares those that have come back.

with --json: {queued, plan, names, running}.

example:
  pruner approve 5d41402abc"""
