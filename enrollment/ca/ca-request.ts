import { contextTag } from '#shared/pki/der'
import { bitString, element, integer, sequence } from '#shared/pki/der-write'
import { encodeName } from '#shared/pki/name'
import type { Signer } from './signer.ts'

/** DER of a PKCS#10 request (RFC 2986 section 4) without any wish, signed by a key wherever it lies. */
export async function requestFor(signer: Signer, { commonName }: { commonName: string }): Promise<Buffer> {
  const noAttributes = element(contextTag(0, 'constructed'))
  const info = sequence(integer(0), encodeName({ commonName }), signer.spki, noAttributes)
  return sequence(info, signer.algorithm, bitString(await signer.sign(info)))
}
