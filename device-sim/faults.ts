/**
 * Faults that are planted to test the judge: each changes what happens, none changes how it is judged.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { generateKey, privateKeyPem } from '#shared/pki/keys'
import type { Device } from './device.ts'
import type { Link, OpenLink } from './mqtt-link.ts'

export const FAULTS = {
  'drop-message': 'one device counts a message as sent that it has not sent',
  'keep-session': 'a revoked device says that its session has closed, and it has not',
  'lose-key': 'the key of one device is overwritten after the rotation',
} as const

export type FaultName = keyof typeof FAULTS

export function isFaultName(text: string): text is FaultName {
  return Object.hasOwn(FAULTS, text)
}

/** Where a fault can take hold of a run. */
export interface Fault {
  /** How the devices connect. */
  readonly openLink: OpenLink
  /** True when the fault needs one more device, enrolled and connected, that is not counted. */
  readonly needsSpare: boolean
  afterRotation(devices: readonly Device[]): void
  beforeRevocation(victim: Device, spare: Device | null): Promise<void>
  atRevocation(): void
}

const NONE: Omit<Fault, 'openLink'> = {
  needsSpare: false,
  afterRotation: () => {},
  beforeRevocation: async () => {},
  atRevocation: () => {},
}

/** @param openLink how devices connect without a fault */
export function plantFault(name: FaultName | null, openLink: OpenLink): Fault {
  if (name === 'drop-message') return { ...NONE, openLink: droppingOne(openLink) }
  if (name === 'lose-key') return { ...NONE, openLink, afterRotation: loseKey }
  if (name === 'keep-session') return keepingSession(openLink)
  return { ...NONE, openLink }
}

/** The third message that any device sends is acknowledged and never sent. */
function droppingOne(openLink: OpenLink): OpenLink {
  let published = 0
  return async (options) => {
    const link = await openLink(options)
    const publish: Link['publish'] = async (topic, payload) => {
      published += 1
      if (published !== 3) await link.publish(topic, payload)
    }
    return { ...link, publish }
  }
}

function loseKey([device]: readonly Device[]): void {
  const current = device && join(device.credentials.directory, 'current', 'key.pem')
  if (current) writeFileSync(current, privateKeyPem(generateKey()))
}

/** What the lie says the close took, ms. */
const PLAUSIBLE_MS = 50

/** The victim's socket is exchanged for one of a device that is not revoked, and reported as the victim's. */
function keepingSession(openLink: OpenLink): Fault {
  const links = new Map<string, { real: Link; claim: (at: number) => void; now: () => number }>()
  let victim: string | null = null
  return {
    ...NONE,
    needsSpare: true,
    openLink: async (options) => {
      const real = await openLink(options)
      const claimed = Promise.withResolvers<number>()
      const entry = { real, claim: claimed.resolve, now: options.now }
      links.set(options.clientId, entry)
      void real.closed.then((at) => {
        if (victim !== options.clientId) claimed.resolve(at)
      })
      return { ...real, closed: claimed.promise }
    },
    beforeRevocation: async (device, spare) => {
      victim = device.id
      await spare?.connect(AbortSignal.timeout(10_000))
      await links.get(device.id)?.real.end()
    },
    atRevocation: () => {
      const entry = victim === null ? undefined : links.get(victim)
      entry?.claim(entry.now() + PLAUSIBLE_MS)
    },
  }
}
