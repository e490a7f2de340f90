import type { FleetProfile, ProfileRequest } from '#shared/api'
import type { Sqlite } from '#shared/sqlite'
import { DEFAULT_FLEET, DEFAULT_LIFETIME_MS } from './defaults.ts'
import type { Fleets } from './fleets.ts'
import { type Dates, datesOf, namesOf, refuseOutside, type Subject } from './profile-rules.ts'
import type { DeviceWish, IssuedNames, IssuingCa, Registry } from './registry.ts'
import type { Store } from './store.ts'

/** Two thirds of the life, and a tenth of it later at most. */
const DEFAULT_PROFILE: Omit<FleetProfile, 'lifetimeMs'> = {
  keys: ['P-256', 'P-384'],
  lifetimeJitter: 0,
  renewal: { after: 0.6667, jitter: 0.1, before: 0.9 },
  subject: {},
  san: [],
  graceMs: 0,
  linkedToTls: false,
  serverKeys: false,
}

interface ProfileColumns {
  readonly lifetime_ms: number
  readonly profile: string
}

/** A profile as it is stored: the lifetime has a column of its own. */
export function profileOf(row: ProfileColumns): FleetProfile {
  const stored = JSON.parse(row.profile) as ProfileRequest // written by profileColumns only
  return { ...DEFAULT_PROFILE, ...stored, lifetimeMs: row.lifetime_ms }
}

/** Reads each profile once: every enrollment asks for that of its fleet, and few are different. */
function remembered(): typeof profileOf {
  const known = new Map<string, FleetProfile>()
  return (row) => {
    const text = `${row.lifetime_ms} ${row.profile}`
    const profile = known.get(text) ?? profileOf(row)
    if (known.size >= MAX_REMEMBERED) known.clear()
    known.set(text, profile)
    return profile
  }
}

/** Versions of profiles, not fleets. */
const MAX_REMEMBERED = 256

export function profileColumns(profile: ProfileRequest): ProfileColumns {
  const { lifetimeMs = DEFAULT_LIFETIME_MS, ...rest } = profile
  return { lifetime_ms: lifetimeMs, profile: JSON.stringify(rest) }
}

/** What is about to be recorded, as far as a profile says what is in it. */
interface Grant {
  readonly device: Subject
  /** Null for a service. */
  readonly wish: DeviceWish | null
  readonly now: number
  readonly serial: string
  readonly issuer: IssuingCa
}

/** Applies the profile of a fleet to what is about to be recorded. */
export function openProfiles(db: Sqlite) {
  const find = db.prepare<[string], ProfileColumns>('SELECT lifetime_ms, profile FROM fleets WHERE id = ?')
  const profileIn = remembered()
  const require = (fleet: string) => {
    const row = find.get(fleet)
    if (row === undefined) throw new Error(`no fleet ${fleet}`) // a foreign key keeps this from happening
    return profileIn(row)
  }
  const granted = (profile: FleetProfile, { device, wish }: Pick<Grant, 'device' | 'wish'>): IssuedNames => {
    const names = namesOf(profile, device)
    if (wish !== null) refuseOutside(profile, { of: device, wish, granted: names })
    return names
  }
  return {
    /** @throws MusterError csr_key, csr_subject */
    names: (device: Subject, wish: DeviceWish | null) => granted(require(device.fleet), { device, wish }),
    /** Names and dates by one look at the profile. @throws as `names` */
    grant(of: Grant): { names: IssuedNames; dates: Dates } {
      const profile = require(of.device.fleet)
      const names = granted(profile, of)
      return { names, dates: datesOf(profile, { ...of, issuerNotAfter: of.issuer.notAfter }) }
    },
    graceMs: (fleet: string) => require(fleet).graceMs,
    dates(of: { fleet: string; now: number; serial: string; issuer: IssuingCa }) {
      return datesOf(require(of.fleet), { ...of, issuerNotAfter: of.issuer.notAfter })
    },
  }
}
export type Profiles = ReturnType<typeof openProfiles>

export function openProfileIntents(parts: {
  store: Store
  fleets: Fleets
}): Pick<Registry, 'showProfile' | 'setProfile' | 'profileFor'> {
  const { store, fleets } = parts
  const set = store.db.prepare<[number, string, string]>(
    'UPDATE fleets SET lifetime_ms = ?, profile = ? WHERE id = ?',
  )
  return {
    showProfile: (fleet) => store.read(() => profileOf(fleets.require(fleet))),
    profileFor: (batch) =>
      store.read(() => {
        const named = batch === null ? undefined : fleets.findBatch(batch)
        return profileOf(fleets.require(named?.fleet ?? DEFAULT_FLEET))
      }),
    setProfile: (fleet, profile, act) =>
      store.write(act, (log) => {
        fleets.require(fleet)
        const columns = profileColumns(profile)
        set.run(columns.lifetime_ms, columns.profile, fleet)
        log.audit({ action: 'fleet.profile', subject: `fleet:${fleet}` })
        return profileOf(columns)
      }),
  }
}
