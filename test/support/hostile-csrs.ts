/** A corpus of requests that nobody honest would send, made anew at each run. */
import { generateKey } from '#shared/pki/keys'
import type { Family, HostileCsr } from './hostile-csr.ts'
import { attributes, keys, signatures } from './hostile-csr-keys.ts'
import { cuts, encodings, flips } from './hostile-csr-octets.ts'
import { alternativeNames, extensions, subjects } from './hostile-csr-wishes.ts'

/** @param trustDomain of the plane that is attacked */
export function hostileCsrs(trustDomain: string): HostileCsr[] {
  let count = 0
  const next = () => ({ id: `victim-${++count}`, key: generateKey() })
  const families: Record<string, Family> = {
    extensions,
    names: (victim) => alternativeNames(victim, trustDomain),
    subjects,
    keys,
    signatures,
    attributes,
    encodings,
    cuts,
    flips,
  }
  return Object.entries(families).flatMap(([family, make]) =>
    make(next).map(({ name, der }) => ({ name: `${family}: ${name}`, der })),
  )
}
