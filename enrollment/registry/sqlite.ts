import type { Sqlite } from '#shared/sqlite'
import { openAdoption } from './adoption.ts'
import { openApprovals } from './approvals.ts'
import { openApproving } from './approving.ts'
import { openAttributes } from './attributes.ts'
import { openAudit } from './audit.ts'
import { openBatchReports } from './batch-report.ts'
import { openBootstrapAlarms } from './bootstrap-alarms.ts'
import { openBootstrapCredentials } from './bootstrap-credential.ts'
import { openBrokers } from './brokers.ts'
import { openCertificates } from './certificates.ts'
import { openClaims } from './claims.ts'
import { openCloneBook, openClones } from './clones.ts'
import { openCompromisedKeys } from './compromised-keys.ts'
import { openCounts } from './counts.ts'
import { openDeviceRows } from './device-rows.ts'
import { openDevices } from './devices.ts'
import { openEventLog } from './event-log.ts'
import { openEvents } from './events.ts'
import { openFinalising } from './finalising.ts'
import { openFinish, openFinishing } from './finish.ts'
import { openFleetIntents, openFleets } from './fleets.ts'
import { openHolds } from './holds.ts'
import { openApiTokens, openInfrastructure } from './infrastructure.ts'
import { openIssuance } from './issuance.ts'
import { openIssuers } from './issuers.ts'
import { openManifests } from './manifest.ts'
import { openManufactured } from './manufactured.ts'
import { openManufacturers } from './manufacturers.ts'
import { openPlanRows } from './plan-rows.ts'
import { openPlanScopes } from './plan-scope.ts'
import { openPlans } from './plans.ts'
import { openPolicyIntents } from './policies.ts'
import { openProfileIntents, openProfiles } from './profiles.ts'
import { openProposals } from './proposals.ts'
import { openPruning } from './pruning.ts'
import { openPurgeOrders, openPurgeSpreading } from './purge-orders.ts'
import { openReceiptBook, openReceipts } from './receipts.ts'
import { openRefusalLog, openRefusals } from './refusals.ts'
import type { Registry } from './registry.ts'
import { openRenewal } from './renewal.ts'
import { openReports } from './reports.ts'
import { openReservations } from './reservations.ts'
import { openRevocationStatus } from './revocation-status.ts'
import { openRollovers } from './rollovers.ts'
import { openRotations } from './rotations.ts'
import { openSecondFactorIntents } from './second-factors.ts'
import { openServerKeys } from './server-keys.ts'
import { openServices } from './services.ts'
import { openSightings, openSupersession } from './sightings.ts'
import type { Store } from './store.ts'
import { openStream } from './stream.ts'
import { Streams } from './streams.ts'
import { openSynthetic } from './synthetic.ts'
import { openTokens } from './tokens.ts'

export interface Opened {
  readonly store: Store
  readonly path: string
  readonly rowsInTurn: number
  readonly epoch: string
  readonly trustDomain: string
}

/** The port on an SQLite file: each group of intents with the parts that it needs. */
export function sqliteRegistry({ store, path, rowsInTurn, epoch, trustDomain }: Opened): Registry {
  const { db } = store
  const streams = new Streams()
  const profiles = openProfiles(db)
  const certificates = openCertificates(db)
  const devices = openDeviceRows(db)
  const finishing = openFinishing(db, { certificates, devices })
  const parts = {
    store,
    path,
    rowsInTurn,
    epoch,
    streams,
    snapshots: new Set<Sqlite>(),
    certificates,
    devices,
    finishing,
    approvals: openApprovals(db),
    attributes: openAttributes(db),
    reservations: openReservations(db, { profiles, devices, finishing }),
    profiles,
    serverKeys: openServerKeys(db, certificates),
    holds: openHolds(db),
    credentials: openBootstrapCredentials(db),
    fleets: openFleets(db),
    plans: openPlanRows(db),
    scopes: openPlanScopes(db),
    purges: openPurgeOrders(db, epoch),
    receipts: openReceiptBook({ db, streams }),
    refusals: openRefusalLog(store),
    events: openEventLog(db),
    clones: openCloneBook(db),
    sightings: openSightings(db),
  }
  return {
    trustDomain,
    ...openFleetIntents(parts),
    ...openProfileIntents(parts),
    ...openPolicyIntents(parts),
    ...openSecondFactorIntents(parts),
    ...openCompromisedKeys(parts),
    ...openRotations(parts),
    ...openTokens(parts),
    ...openIssuance(parts),
    ...openRenewal(parts),
    ...openServices(parts),
    ...openFinish(parts),
    ...openApproving(parts),
    ...openManifests(parts),
    ...openClaims(store),
    ...openClones(parts),
    ...openManufacturers(parts),
    ...openManufactured(parts),
    ...openBootstrapAlarms(store),
    ...openBatchReports(parts),
    ...openDevices(parts),
    ...openSynthetic(store),
    ...openProposals(parts),
    ...openPlans(parts),
    ...openFinalising(parts),
    ...openPurgeSpreading(parts),
    ...openReceipts(parts),
    ...openSupersession(parts),
    ...openStream(parts),
    ...openReports(parts),
    ...openRefusals(parts),
    ...openEvents(parts),
    ...openBrokers(parts),
    ...openInfrastructure(store),
    ...openApiTokens(store),
    ...openIssuers(store),
    ...openRollovers(store),
    ...openAdoption(store),
    ...openRevocationStatus(parts),
    ...openAudit(store),
    ...openPruning(store),
    ...openCounts(parts),
    commits: () => ({ ...store.commits }),
    async close() {
      for (const snapshot of parts.snapshots) snapshot.close()
      await store.close()
    },
  }
}
